"""Runs the work of ``prepare`` as Apache Beam pipelines, one for each stage."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence

from data_pipelines.packing.runner import Entry
from langsamp_jax.errors import UserError


class BeamRunner:
    """Calls every item once in a Beam pipeline; the workers must see the store's folder.

    Args:
      arguments: Beam's pipeline options, ``["--runner=FlinkRunner", ...]``.

    Raises:
      UserError: Beam is not installed, or refuses the options.
    """

    def __init__(self, arguments: Sequence[str]):
        try:
            from apache_beam.options.pipeline_options import PipelineOptions
        except ImportError:
            raise UserError(
                "--runner beam needs Apache Beam: pip install 'langsamp-jax[data]'"
            ) from None
        self._options, stderr = PipelineOptions(list(arguments)), io.StringIO()
        try:
            with contextlib.redirect_stderr(stderr):
                self._options.get_all_options()
        except SystemExit:  # argparse, which has printed why
            reason = stderr.getvalue().rpartition("error: ")[2].strip()
            raise UserError(f"--beam_options: {reason}") from None

    def __call__(self, call: Callable[[Entry], None], entries: Sequence[Entry]) -> Iterator[str]:
        import apache_beam as beam

        if entries:
            try:
                pipeline = beam.Pipeline(options=self._options)
            except (ValueError, ImportError, TypeError) as error:  # as its runners refuse options
                raise UserError(f"--beam_options: {error}") from None
            with pipeline:
                # Without a reshuffle, runners fuse the steps and one worker does everything.
                items = pipeline | beam.Create(list(entries)) | beam.Reshuffle()
                items | beam.Map(lambda entry: call(entry))
        yield from (key for key, _ in entries)

    def close(self) -> None:
        """Does nothing: every pipeline ends with its call."""
