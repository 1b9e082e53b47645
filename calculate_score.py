"""Score every training sample by its self-influence, summed over the checkpoints of a run.

    python -u calculate_score.py --input output --checkpoint output --output output

The second of three steps: train.py comes before, mislabel_analysis.py after.
"""
import datetime
from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from datasets import arrays
from datasets.arrays import Dataset
from models.registry import Network, build_network
from utils import cli
from utils.cli import Parser
from utils.context import current_context, set_context
from utils.errors import UserError
from utils.files import check_folder
from utils.graph.functions import fingerprint
from utils.mpi import job
from utils.tracin import explanations, scores
from utils.tracin.chosen import check_chosen, choose
from utils.tracin.engines import ENGINES, choose_engine
from utils.tracin.explaining import explain
from utils.tracin.scores import CheckpointScores
from utils.tracin.scoring import SAMPLES_PER_PASS, ScoringPlan, score_missing
from utils.tracin.settings import ScoreSettings, add_scoring_flags
from utils.tracin.trained import check_data, inputs_of, network_of, select_checkpoints, set_files
from utils.training.checkpoint import Checkpoint, check_parameters, find_checkpoints, run_key


def get_args(argv: Sequence[str] | None = None) -> ScoreSettings:
    parser = Parser(description=__doc__)
    add_scoring_flags(parser)
    return ScoreSettings.from_arguments(parser.parse_args(argv))


def main(argv: Sequence[str] | None = None):
    settings = get_args(argv)
    check_folder(settings.output)
    dataset = arrays.load(settings.input, test=settings.explain_test is not None)
    available = find_checkpoints(settings.checkpoint)
    checkpoints = select_checkpoints(available, settings.epochs, settings.checkpoint)
    samples = len(dataset.images)
    model, classes, nmaps = network_of(settings, checkpoints[0])
    check_data(settings, checkpoints[0], dataset, classes)
    check_chosen(settings, dataset, classes)
    device = set_context(settings.context, settings.device_id, settings.type_config)
    inputs = inputs_of(model, dataset, settings)
    plan = make_plan(settings, build_network(model, classes, nmaps, shape=inputs.shape[1:]), samples)
    checkpoints = check_parameters(checkpoints, plan.network)
    ranks = f", {job().size} ranks" if job().size > 1 else ""
    print(f"{model} on {device}: {'all layers' if plan.layers == 'all' else 'last layer'} by "
          f"{plan.engine}, --workers {plan.workers}{ranks}, {len(checkpoints)} "
          f"checkpoint{'s' if len(checkpoints) > 1 else ''}, {samples:,} samples"
          f"{unfinished(available[-1])}", flush=True)
    keys = content_keys(plan, checkpoints, dataset.digest())
    results = [CheckpointScores(settings.output, checkpoint.epoch, key, samples, classes)
               for checkpoint, key in zip(checkpoints, keys, strict=True)]
    report_kept(settings, results)
    score_missing(plan, checkpoints, results,
                  finished=lambda result, left: save_epoch(settings, result, left))
    rates = [checkpoint.description.learning_rate if checkpoint.description else np.nan
             for checkpoint in checkpoints]
    scores.save_total(settings.output, results, rates, dataset.digest(),
                      run_key(checkpoints[0].description), dataset.annotations())
    if not settings.save_every_epoch:
        for result in results:
            result.remove()
    print(f"scored: {settings.output / scores.TOTAL}", flush=True)
    for test in (False, True):
        explain_chosen(settings, plan, checkpoints, keys, dataset, test)
    print(next_step(settings), flush=True)


def next_step(settings: ScoreSettings) -> str:
    if settings.input.resolve() != settings.output.resolve():
        return ("mislabel_analysis.py reads data and scores from one folder: score again with "
                f"--output {settings.input}")
    return "next: " + cli.other_script("mislabel_analysis.py", "--run", settings.output)


def unfinished(last: Checkpoint) -> str:
    """A note if the checkpoints do not reach the end of their run; else nothing."""
    arguments = last.description.arguments if last.description else {}
    planned = arguments.get("train_epochs", last.epoch)
    return f" (up to epoch {last.epoch} of {planned})" if planned != last.epoch else ""


def make_plan(settings: ScoreSettings, network: Network, samples: int) -> ScoringPlan:
    """The flags, with their defaults resolved for the current context."""
    context = current_context()
    engine = choose_engine(settings.engine, settings.layers, context)
    several = job().size > 1 and ENGINES[engine].parallel == "processes"
    if several and (settings.workers or 1) > 1:
        raise UserError(f"expected --workers 1 with --engine {engine} in an MPI job, whose ranks are "
                        f"the processes, found {settings.workers}; leave the flag out")
    usual = job().cores if context == "cpu" and not several else 1
    return ScoringPlan(
        network, *set_files(settings.input, network), settings.layers, engine,
        settings.batch_size or min(SAMPLES_PER_PASS[context, settings.layers], samples),
        settings.workers or usual, context, settings.device_id, settings.type_config)


def content_keys(plan: ScoringPlan, checkpoints: list[Checkpoint], digest: str) -> list[str]:
    """One key per checked checkpoint, of everything that decides its scores."""
    network = fingerprint(plan.network)
    return [scores.content_key(
        data=digest, parameters=checkpoint.sha256, network=network, layers=plan.layers,
        engine=[plan.engine, ENGINES[plan.engine].version], context=plan.context,
        type_config=plan.type_config) for checkpoint in checkpoints]


def save_epoch(settings: ScoreSettings, result: CheckpointScores, left: float):
    """Save the scores at one checkpoint and print a line on them."""
    if settings.save_every_epoch:
        result.save_influence()
    tqdm.write(f"epoch {result.epoch}: mean self-influence {result['influence'].mean():.4g}, "
               f"{datetime.timedelta(seconds=round(left))} left")


def explain_chosen(settings: ScoreSettings, plan: ScoringPlan, checkpoints: list[Checkpoint],
                   keys: list[str], dataset: Dataset, test: bool):
    """Write the explanations for --explain or, if `test`, for --explain_test.

    Without the flag, explanations of other scores than these are removed.
    """
    path = settings.output / (explanations.TEST if test else explanations.TRAIN)
    asked = (settings.explain_test if test else settings.explain) is not None
    total = scores.load_total(settings.output, len(dataset.labels))
    origins = explanations.origin(dataset, total, test)
    if not asked:
        if explanations.remove_others(path, origins):
            print(f"removed {path}, which explained other scores; {explanations.FLAGS[test]} writes it "
                  "again", flush=True)
        return
    chosen = choose(settings, plan, checkpoints, total, test)
    kind = "test" if test else "training"
    if not len(chosen.indices):
        path.unlink(missing_ok=True)
        print(f"nothing to explain: no test sample is wrong at epoch {checkpoints[-1].epoch}",
              flush=True)
        return
    key = scores.content_key(checkpoints=keys, indices=chosen.indices.tolist(), **origins)
    if explanations.are_kept(key, settings.output, dataset, total, test):
        print(f"explanations are kept: {path}", flush=True)
        return
    print(f"explaining {len(chosen.indices):,} {kind} samples", flush=True)
    explain(chosen, path, origins, key)
    print(f"explained: {path}", flush=True)


def report_kept(settings: ScoreSettings, results: list[CheckpointScores]):
    """Print which scores of an earlier run are kept and which are recomputed."""
    stale = [str(result.epoch) for result in results if result.stale]
    if stale:
        print(f"recomputing: epoch {', '.join(stale)}; the scores in {settings.output} are damaged or "
              "of other parameters, data, settings or versions", flush=True)
    complete = [result for result in results if not result.missing()]
    kept = sum(result.size - result.missing() for result in results)
    if kept:
        print(f"resuming: {len(complete)} of {len(results)} checkpoints and {kept:,} of "
              f"{sum(result.size for result in results):,} scores are kept", flush=True)
    if settings.save_every_epoch:
        for result in complete:
            result.save_influence()


if __name__ == "__main__":
    cli.run(main, led=True)
