"""Compare a run's checkpoint with transformers' own model, once per model on a set of ranks."""

from __future__ import annotations

from dataclasses import replace

from ringexp.models.inputs import unpadded
from ringexp.tracking.results import RunResult
from ringexp.worker.prepare import PreparedJob


def with_checkpoint_check(job: PreparedJob, result: RunResult) -> RunResult:
    """Add to a run's result how far its checkpoint is from Hugging Face's model.

    All ranks call this together. The rank that checks results alone compares the two, unless an earlier job
    with the same model did. If they differ by more than rounding, the result is not exact. Without a
    checkpoint or with check=false nothing changes.
    """
    session, text_model = job.session, job.workload.text_model
    if not job.config.check or text_model is None or text_model.checkpoint is None:
        return result
    folder, check = text_model.checkpoint, text_model.checkpoint_check
    if check is None:
        session.progress.stage("checking the checkpoint against Hugging Face's own model")
        if session.rank == job.checker:
            check = text_model.compare_with_hugging_face(unpadded(job.x, job.plan)[0][:1])
        check = session.communicator.gather(check)[job.checker]
        assert check is not None
        text_model.checkpoint_check = check
        if check.left_out:
            session.progress.warn(
                f"checkpoint {folder} was not compared with Hugging Face's: {check.left_out}"
            )
    result = replace(result, error_checkpoint=check.error)
    if check.exact or result.exact is False:
        return result
    return replace(result, exact=False, why_inexact=check.why_inexact(folder))
