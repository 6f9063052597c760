"""The directory of a run: unused, with a run to continue, or with one to replace."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from ...training.callback import UNCHECKED_FOLDER
from ..errors import UserError
from ..files import is_used, reject_links_out
from ..recording import NAME as DIAGNOSTICS
from .record import NAME, RunRecord, as_json, differing_keys, read

FREE: dict[str, tuple[str, ...]] = {
    "they say where and what to write": (
        "adapter.sds_format",
        "output_dir",
        "training.disable_tqdm",
        "training.hub_",
        "training.log_",
        "training.logging_",
        "training.project",
        "training.push_to_hub",
        "training.report_to",
        "training.run_name",
        "training.save_",
        "training.trackio_",
    ),
    "they measure, and the training goes on as before": (
        "checks",
        "diagnostics",
        "evaluation.after",
        "evaluation.batch_size",
        "evaluation.before",
        "training.do_eval",
        "training.eval_",
        "training.per_device_eval_batch_size",
        "training.skip_memory_metrics",
    ),
    "they say when to stop": ("training.early_stopping_patience",),
    "the same rows arrive by another way": (
        "training.dataloader_num_workers",
        "training.dataloader_persistent_workers",
        "training.dataloader_pin_memory",
        "training.dataloader_prefetch_factor",
        "training.dataset_num_proc",
    ),
    "they trade time for memory, and compute the same": (
        "training.activation_checkpointing",
        "training.gradient_checkpointing",
        "training.torch_empty_cache_steps",
    ),
    "they follow from the model and from PEFT": ("adapter.peft_version", "adapter.task_type"),
}
"""By reason, the keys (or their beginnings) that a resumed run may change."""
_FREE_KEYS = tuple(key for keys in FREE.values() for key in keys)
_WRITTEN = (
    "checkpoint-*",
    "adapter_config.json",
    "adapter_model.*",
    UNCHECKED_FOLDER,
    "generations-*.jsonl",
    DIAGNOSTICS,
)
"""What a run writes that another run would take for its own. The rest it writes over."""


def earlier_run(
    output_dir: Path, *, resume: bool = False, overwrite: bool = False, dry_run: bool = False
) -> RunRecord | None:
    """Check that a run may write to ``output_dir``, and return the record to continue, if any.

    Args:
        output_dir: the run's directory.
        resume: whether to continue the run in the directory.
        overwrite: whether to start again in its place.
        dry_run: whether nothing will be written.

    Raises:
        UserError: if the directory is used and neither option is set, or if it is to be continued
            or replaced and holds no run, or a link that leads out of it.
    """
    if resume and overwrite:
        raise UserError("resume continues a run and overwrite starts it again: set one of them")
    if not is_used(output_dir) or (dry_run and not resume and not overwrite):
        return None
    if not resume and not overwrite:
        raise UserError(
            f"output directory {output_dir} exists and is not empty; choose another output_dir, or "
            "add --resume to continue the run that it holds, or --overwrite to start it again"
        )
    record = read(output_dir) if output_dir.is_dir() else None
    if record is None:
        raise UserError(
            f"cannot {'resume' if resume else 'overwrite'}: {output_dir} holds no {NAME}, so no "
            "run of ours"
        )
    reject_links_out(output_dir)
    return record if resume else None


def changes(
    record: RunRecord, config: Mapping[str, object], defaults: Mapping[str, object]
) -> list[str]:
    """Return the settings that differ from a record's and are not ``FREE``, with both values."""
    return differing_keys(record["config"], as_json(config), as_json(defaults), _FREE_KEYS)


def clear(output_dir: Path) -> None:
    """Remove what an earlier run wrote into its directory; the record, which marks it, last.

    Other files stay, and links are removed without what they point to.
    """
    if read(output_dir) is None:
        return
    for pattern in (*_WRITTEN, NAME):
        for path in output_dir.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
