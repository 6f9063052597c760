"""What users of LoRA reported in public, tried here: the kind, and what prevents it now.

One entry: the symptom, the kind that it stands for, how that is prevented, and the test.
"""

_OPTIMIZERS = "tests/training/test_optimizers.py::"
_VERIFIED = "tests/export/test_verification.py::"
_CHECKS = "tests/training/test_checks.py::"
_RULES = "tests/tuner/test_peft_rules.py::"

REPORTS: list[tuple[str, str, str, str]] = [
    (
        "the loss jumps some steps after the main stage begins, under Lookahead",
        "slow weights, or another memory of a wrapper round the optimizer",
        "a wrapper is rejected before training; slow weights in its states are reset with them",
        f"{_OPTIMIZERS}test_slow_weights_begin_again_from_the_reparameterized_ones",
    ),
    (
        "GrokAdamW's and optimi's bias corrections and means go on after the reset",
        "moments or step counters in parameter groups",
        "reset as well; rejected where they are shared with what is trained beside A and B",
        f"{_OPTIMIZERS}test_a_counter_and_means_in_the_group_are_reset",
    ),
    (
        "LOMO: the warm-up never ends",
        "updates inside the backward pass, memory in attributes",
        "rejected by name before training",
        f"{_OPTIMIZERS}test_what_cannot_be_reset_is_rejected_before_training",
    ),
    (
        "APOLLO: KeyError after the reset; Adagrad, schedule-free: said to have taken steps",
        "states that the constructor makes",
        "no steps; made again at the reset, in a resumed training too",
        f"{_OPTIMIZERS}test_where_an_optimizer_starts_is_in_its_checkpoint",
    ),
    (
        "averaged weights (schedule-free) undo a part of each refresh",
        "copies of A and B, while refreshes or the ramp rewrite these",
        "rejected by name before training",
        f"{_OPTIMIZERS}test_copies_of_the_parameters_do_not_go_with_refreshes_that_rewrite_them",
    ),
    (
        '8-bit AdamW with preset="tuned": a message that misleads',
        "momentum in another form than transport_momentum knows",
        "rejected by name before training, with the way out",
        f"{_OPTIMIZERS}test_momentum_that_transport_would_miss_is_rejected",
    ),
    (
        "the plain export of a DeepSeek model lacks its dense layers, without a word",
        "layers that stock PEFT takes for experts by their names",
        "exported under names that it leaves alone; each export is read back",
        f"{_VERIFIED}test_dense_layers_whose_names_experts_have_too",
    ),
    (
        "an exported adapter computes something else in stock PEFT",
        "tensors of an export that the reader loses",
        "error; nothing is written",
        f"{_VERIFIED}test_tensors_that_stock_peft_loses_stop_the_export",
    ),
    (
        "sdslora merge reports success, and the merged model computes something else",
        "one tensor for input embedding and output layer, of which an adapter changes one",
        "each gets its own weight, and a warning says so",
        "tests/tuner/test_tied.py::test_the_merged_model_is_the_adapted_one_saved_and_loaded",
    ),
    (
        "to_plain_lora fails for adapted embeddings that are tied, where saving works",
        "tied layers, both adapted",
        "the same function in stock PEFT",
        f"{_VERIFIED}test_tied_embeddings",
    ),
    (
        "Diffusers loads what its own training scripts wrote, and draws something else, or fails",
        "a loader that knows LoRA alone, given the tensors and no scaling",
        "with metadata the loader gets our configuration; without, an error names the ways out",
        "tests/export/test_image_models.py::test_what_the_scripts_write_is_read_by_the_stock_loader",
    ),
    (
        "the words None and nan in the training text",
        "null, NaN, infinity, lists or half characters below the top level of a row",
        "error before training, with file, row and field",
        "tests/app/data/test_held_out.py::test_values_below_the_top_level_that_are_no_text",
    ),
    (
        "an answer with `</s>` in its HTML is cut there",
        "the text of the end-of-sequence token in an answer",
        "error before training, with file and row",
        "tests/app/data/test_encoding.py::test_an_answer_that_contains_the_end_is_not_cut_there",
    ),
    (
        "a message, a tool call or a prompt that opens or ends a turn",
        "the text of a control token in what the chat template encloses",
        "error before training, with file and row",
        "tests/app/data/test_encoding.py::"
        "test_control_tokens_in_a_chat_come_from_the_template_alone",
    ),
    (
        "sdslora train --adapter.trainable_token_indices '[5, 6]' crashes",
        "an option of PEFT's configuration that has two types",
        "a list means the input embedding, in the command too; unknown tokens are rejected",
        "tests/app/run/test_dry_run.py::test_trained_tokens_beside_the_layers",
    ),
    (
        "new tokens that first occur in step 23 stop the training",
        "trained tensors without a gradient in the first steps",
        "the training goes on; a warning at the end names those that never occurred",
        f"{_CHECKS}test_tokens_that_never_occur_are_said",
    ),
    (
        "a run stopped in step 1 of a learning-rate warm-up cannot be resumed",
        "a checkpoint from steps whose learning rate was 0",
        "resumed bit for bit",
        "tests/training/test_resume.py::test_resumed_where_the_learning_rate_was_zero_so_far",
    ),
    (
        "early stopping ends with an error when the best checkpoint is an early one",
        "a checkpoint of the adapter's warm-up, loaded at the end",
        "the training ends with it, after its checks",
        "tests/training/test_trainer_callback.py::test_the_best_checkpoint_may_lie_in_the_warmup",
    ),
    (
        "NaN in one step: the message comes late and says too little",
        "a loop without a guard",
        "error at that step in the warm-up, later at the next refresh, with the layer's name",
        "tests/training/test_scheduler.py::test_a_gradient_that_is_nan_is_named_at_its_step",
    ),
    (
        "an empty prompt is reported with the wrong row",
        "rows counted after some were held out",
        "messages give the row's number in its file",
        "tests/app/data/test_encoding.py::test_an_empty_prompt_is_named_by_its_row_in_the_file",
    ),
    (
        "Diffusers' layerwise casting: dtypes differ in the fused layer",
        "weights in half precision that hooks cast for the time of a call",
        "computed in the input's dtype, as LoRA does",
        f"{_RULES}test_weights_that_hooks_cast_for_the_time_of_a_call",
    ),
    (
        "ignore_mismatched_sizes=True is ignored for a resized embedding",
        "an adapter loaded where one layer has another size",
        "that layer is left as it is, and a warning says so",
        f"{_RULES}test_layers_of_another_size_are_left_as_they_are",
    ),
    (
        "PeftMixedModel rejects the method",
        "adapters of several methods in one model",
        "they add up, in any order; use_hira is rejected, with the reason",
        "tests/tuner/test_mixed.py::test_changes_of_one_layer_add_up_in_any_order",
    ),
    (
        "inject_adapter_in_model(state_dict=...) takes a layer without A and B",
        "layers taken from the names of tensors",
        "PEFT's warning, in either direction",
        f"{_RULES}test_layers_taken_from_a_state_dictionary",
    ),
    (
        'bias="sdslora_only" is rejected; repr hides the kind of the base layer',
        "PEFT's rules for names",
        "they hold",
        f"{_RULES}test_biases_by_the_methods_own_name",
    ),
]
