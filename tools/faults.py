"""The faults that the tests inject: what, what happens, and the test that shows it."""

_CHECKS = "tests/training/test_checks.py::"
_HOSTILE = "tests/tuner/test_hostile_files.py::"
_STRANGERS = "tests/app/commands/test_strangers.py::"
_KILLS = "tests/reliability/test_kills.py::"

FAULTS: list[tuple[str, str, str]] = [
    (
        "SIGKILL at a random moment, several times a run",
        "the same command goes on; every loss and the adapter are those of an uninterrupted run",
        f"{_KILLS}test_killed_runs_are_the_uninterrupted_one",
    ),
    (
        "SIGKILL while a checkpoint is written",
        "it is passed over, and said so; the last whole one is used",
        f"{_KILLS}test_a_half_written_checkpoint_is_passed_over_and_said_so",
    ),
    (
        "a file of a checkpoint missing or cut short, each in turn, anywhere",
        "recognised, with the file's name",
        f"{_KILLS}test_every_file_that_is_needed_is_recognised_cut_short_or_missing",
    ),
    (
        "SIGKILL before `run.json` was written for the first time",
        "the same command begins again",
        f"{_KILLS}test_killed_before_its_record_was_written",
    ),
    (
        "killed between the last step and the end",
        "no step is taken twice (the Trainer alone would take one too many)",
        "tests/reliability/test_kills.py::test_going_on_from_the_last_step_takes_no_other",
    ),
    (
        "adapter silently discarded at resume (the Trainer logs a line and goes on with a new one)",
        "error before the first step: `loaded`",
        f"{_CHECKS}test_an_adapter_discarded_at_resume",
    ),
    (
        "adapter and optimizer of two different checkpoints",
        "error before the first step: `loaded`",
        f"{_CHECKS}test_an_adapter_of_the_warmup_at_a_later_step",
    ),
    (
        "an adapter file without its bases",
        "error when it is loaded",
        "tests/tuner/test_persistence.py::test_an_adapter_without_its_bases_is_noticed",
    ),
    (
        "schedule never driven",
        "warning at the first step it is missed",
        "tests/training/test_watchdog.py::test_warns_once_at_the_first_step_past_the_warmup",
    ),
    (
        "schedule forgotten by a resumed training",
        "warning at the first step",
        "tests/training/test_watchdog.py::test_warns_where_a_resumed_training_forgets_the_scheduler",
    ),
    (
        "scheduler stepped too rarely",
        "error at that step",
        "tests/training/test_scheduler.py::test_stepping_too_rarely_is_an_error",
    ),
    (
        "layers replaced under the schedule",
        "error after the first steps or at the end: `schedule`",
        f"{_CHECKS}test_a_layer_that_the_schedule_does_not_know",
    ),
    (
        "another adapter loaded over the one in training",
        "error after the first steps or at the end: `schedule`",
        f"{_CHECKS}test_an_adapter_loaded_over_the_trained_one",
    ),
    (
        "an optimizer that brings its moments back after the reset",
        "error one step later: `reset`",
        "tests/training/test_optimizer_reset.py::test_a_reset_that_did_not_hold_is_an_error",
    ),
    (
        "the same of an optimizer that counts no steps",
        "error one step later: `reset`",
        "tests/training/test_optimizer_reset.py::"
        "test_moments_that_come_back_without_a_counter_are_an_error",
    ),
    (
        "steps that a gradient scaler skips, and the Trainer counts",
        "the schedule goes by those that were taken",
        "tests/training/test_precision.py::test_steps_that_the_trainers_gradient_scaler_skips",
    ),
    (
        "master weights that overwrite the re-parameterization",
        "error one step later: `reset`",
        f"{_CHECKS}test_master_weights_that_overwrite_the_reparameterization",
    ),
    (
        "an optimizer that does not hold the adapter",
        "error before the first step",
        "tests/training/test_scheduler.py::test_an_optimizer_that_lacks_one_parameter_is_refused",
    ),
    (
        "frozen adapter",
        "error before the first step",
        "tests/training/test_scheduler.py::"
        "test_a_frozen_adapter_is_an_error_that_names_is_trainable",
    ),
    (
        "some of its parameters frozen",
        "error after the first steps: `gradients`",
        f"{_CHECKS}test_frozen_parameters",
    ),
    (
        "a layer cut off from the gradient",
        "error after the first steps: `gradients`",
        f"{_CHECKS}test_a_layer_that_is_cut_off",
    ),
    (
        "nothing learned (a learning rate of 0)",
        "error after the first steps: `changed`",
        f"{_CHECKS}test_learning_nothing",
    ),
    (
        "one bit of a base weight changed",
        "error after the first steps or at the end: `base`",
        f"{_CHECKS}test_a_base_weight_that_changes",
    ),
    (
        "bases averaged or cast",
        "error after the first steps or at the end: `bases`",
        f"{_CHECKS}test_bases_that_something_averages",
    ),
    (
        "a tensor, a part of a tensor, the end of the file or the file lost on save",
        "error when it was saved: `saved`",
        f"{_CHECKS}test_shards_lost_on_save",
    ),
    (
        "a check that fails at the last step",
        "the adapter is saved first, in `adapter-unchecked`, which the error names",
        f"{_CHECKS}test_the_adapter_of_a_check_that_fails_at_the_last_step",
    ),
    (
        "a reference adapter that TRL copies by its parameters, without bases and phase",
        "the copy is whole: its outputs stay, bit for bit, those of the start",
        "tests/training/test_trl.py::test_a_trained_adapter_and_its_copy_as_reference",
    ),
    (
        "a sampler that has the adapter merged into the base and out again (TRL's `use_vllm`)",
        "error before the first step: `base`",
        "tests/training/test_trl.py::test_a_sampler_that_has_the_adapter_merged_is_refused",
    ),
    (
        "merging into quantized weights, which rounds them again",
        "warning with the error that it makes, and the way out",
        "tests/tuner/test_quantized.py::test_the_error_of_a_merge_is_said_once_and_only_there",
    ),
    (
        "a loss that is not a number",
        "error before that step; the last whole checkpoint is named",
        "tests/app/run/test_train.py::test_nan_loss_stops_and_keeps_the_checkpoint",
    ),
    (
        "a gradient that is not finite",
        "error; no broken adapter is saved",
        "tests/app/run/test_train.py::test_broken_weights_are_never_saved",
    ),
    (
        "Ctrl-C",
        "the step is finished, a checkpoint saved; `--resume` goes on bit for bit",
        "tests/app/run/test_train.py::test_interrupted_run_saves_and_continues",
    ),
    (
        "an adapter in a pickle that runs code",
        "rejected in each way of loading; nothing is run",
        f"{_HOSTILE}test_a_pickle_is_refused",
    ),
    (
        "the same, given to each command",
        "error before it begins",
        f"{_STRANGERS}test_a_pickle_is_refused",
    ),
    (
        "a recipe that runs code (YAML tags)",
        "error before it begins; nothing is run",
        f"{_STRANGERS}test_yaml_that_runs_code",
    ),
    (
        "regular expressions of exponential cost in a configuration",
        "error after a second of processor time",
        f"{_HOSTILE}test_patterns_of_exponential_cost",
    ),
    (
        "a rank of a million in a configuration whose file has no such tensors",
        "error before anything is allocated",
        f"{_HOSTILE}test_a_rank_that_the_tensors_do_not_have",
    ),
    (
        "an adapter file with a tensor missing, unknown, of another shape, type or phase",
        "error; the model is as before",
        f"{_HOSTILE}test_a_refused_load_leaves_no_trace",
    ),
    (
        "links in a run's folder that lead out of it",
        "error before it is resumed; nothing is written or deleted there",
        f"{_STRANGERS}test_a_link_out_of_a_run_is_not_followed",
    ),
    (
        "an adapter's name that is a path out of the output directory",
        "error when it is made",
        f"{_HOSTILE}test_a_name_for_an_adapter_that_leaves_the_folder",
    ),
    (
        "tokens in the recipe and in the environment",
        "in no file and no message",
        f"{_STRANGERS}test_secrets_are_not_recorded",
    ),
]
