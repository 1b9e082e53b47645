"""Find mislabelled images: train on the noisy set and save checkpoints.

    python -u train.py --dataset digits --model resnet23 --nmaps 16 --train_epochs 12 \\
        --output output --monitor-path output

The first of three steps; calculate_score.py continues with the files that this one writes.
"""
import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from datasets import flags
from models.registry import MODELS, build_network
from utils import cli, mpi
from utils.backbone.extraction import PARTIAL
from utils.cli import Parser
from utils.context import current_context, set_context
from utils.errors import UserError
from utils.files import check_folder
from utils.tracin.engines import noise_logits
from utils.training import out_of_fold, parallel
from utils.training.checkpoint import check_unused, newest_complete, run_key, save_checkpoint
from utils.training.data import save_data, with_features
from utils.training.epochs import make_trainer, predict_out_of_fold, start_or_resume, train_epoch
from utils.training.export import save_networks
from utils.training.settings import (
    TrainSettings,
    add_training_flags,
    fill_defaults,
    take_corrected,
    take_resumed,
)


def build_parser() -> Parser:
    parser = Parser(description=__doc__)
    flags.add_data_flags(parser)
    add_training_flags(parser)
    return parser


def get_args(argv=None) -> argparse.Namespace:
    args = build_parser().parse_args(argv)
    if "checkpoint" in args.given and args.checkpoint is None:
        args.checkpoint = args.model_save_path or args.monitor_path
    return args


def resolve(args: argparse.Namespace) -> TrainSettings:
    """The settings that the arguments, and the run to resume if any, amount to.

    Raises:
        UserError: arguments contradict each other or the run to resume, or a folder cannot be used.
    """
    args, resumed = argparse.Namespace(**vars(args)), None
    if args.checkpoint:
        resumed = take_resumed(args, build_parser())
    elif args.input and args.corrections and args.shuffle_label is not False:
        take_corrected(args, build_parser())
    fill_defaults(args)
    data = flags.resolve(args, resumed=resumed is not None)
    if args.backbone:  # --image_size is what enters the backbone
        data = replace(data, image_size=None)
    values = {name: getattr(args, name) for name in TrainSettings.__dataclass_fields__
              if name in args}
    values["nmaps"] = MODELS[args.model].check_nmaps(args.nmaps)
    values["model_save_interval"] = args.model_save_interval or max(1, round(args.train_epochs / 9))
    values["model_save_path"] = args.model_save_path or (
        resumed.parameters.parent if resumed else args.monitor_path)
    values.update(data=data, resumed=resumed)
    settings = TrainSettings(**values)
    for folder in (settings.output, settings.monitor_path, settings.model_save_path):
        check_folder(folder)
        if not data.input and flags.is_path(data.dataset):
            flags.check_outside(Path(str(data.dataset)), folder)
    check_unused(settings.model_save_path, except_for=args.checkpoint)
    return settings


def main(argv=None):
    train_and_evaluate(resolve(get_args(argv)))


def train_and_evaluate(chosen: TrainSettings):
    """Write the data, then train from the start or from a checkpoint, and save checkpoints.

    With MPI all ranks train; the first one reads the images and writes all files.
    """
    ranks, first = parallel.ranks(), mpi.job().rank == 0
    rng = np.random.default_rng(chosen.seed)
    where = set_context(chosen.context, chosen.device_id, chosen.type_config)
    chosen = chosen.for_device(current_context())
    if chosen.changes():
        print(chosen.changes(), flush=True)
    if first:
        dataset = flags.load_data(chosen.data, rng, partial(noise_logits, chosen.data.dataset))
        settings = chosen.for_dataset(dataset)
        dataset = with_features(settings, dataset)
        description = settings.describe(dataset)
    else:
        settings, dataset, description = parallel.receive(chosen)
    network = build_network(settings.model, len(dataset.names), settings.nmaps, rng,
                            dataset.inputs.shape[1:])
    trainer = make_trainer(settings, network, dataset.inputs, ranks)
    if first:
        dataset = save_data(settings, dataset, description)
        parallel.hand_out(settings, description)
    log, record = start_or_resume(settings, trainer, dataset, run_key(description))
    done = len(log.history)
    if first:
        print(f"{settings.model} on {where} by {settings.engine}, --workers {settings.workers}"
              f"{f', {ranks.size} ranks' if ranks else ''}: {flags.describe(dataset)}, augmentation "
              f"{'on' if settings.data.augmentation else 'off'}, batch {settings.train_batch_size}, "
              f"{done} of {settings.train_epochs} epochs done", flush=True)
    trainer.share()
    for epoch in range(done, settings.train_epochs):
        rate = train_epoch(settings, trainer, dataset, log, record, epoch)
        if (epoch + 1) % settings.model_save_interval == 0 or epoch + 1 == settings.train_epochs:
            if record:
                record.save(settings.output, run_key(description))
                save_checkpoint(settings.model_save_path, trainer.solver, replace(
                    description, epoch=epoch + 1, learning_rate=rate, history=log.history))
            mpi.wait_for_all()
    probability = predict_out_of_fold(settings, network, dataset, ranks)
    if not first:
        return
    if probability is not None:
        out_of_fold.save(settings.output, run_key(description), probability)
    save_networks(settings.model_save_path, settings.model, network)
    print(f"trained: the data are in {settings.output}, the checkpoints in "
          f"{settings.model_save_path}\nnext: {scoring_command(settings)}", flush=True)


def scoring_command(settings: TrainSettings) -> str:
    folders = ["--run", settings.output]
    if settings.model_save_path != settings.output:
        folders = ["--input", settings.output, "--checkpoint", settings.model_save_path,
                   "--output", settings.output]
    return cli.other_script("calculate_score.py", *folders, *cli.device_words(settings))


def how_to_resume() -> str:
    """What to do after an interrupt, with the command to paste."""
    args = get_args()
    source = args.checkpoint
    folder = (args.model_save_path or (source.parent if source and source.is_file() else source)
              or args.monitor_path)
    try:
        newest_complete(folder)
    except (UserError, OSError):
        folder = source
    if args.backbone and (args.output / PARTIAL).exists():
        return f"the features so far are kept; to resume: {cli.typed_command()}"
    if folder is None:
        return f"no checkpoint was written yet; to start over: {cli.typed_command()}"
    more = [] if folder == source else ["--checkpoint", str(folder)]
    return f"to resume: {cli.typed_command(*more)}"


if __name__ == "__main__":
    cli.run(main, how_to_resume)
