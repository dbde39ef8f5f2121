"""The verbs ``train`` and ``plan``, which compiles a training for another machine."""

import argparse
import dataclasses
import functools
import json
import sys
from typing import Any

from langsamp_jax.cli.parser import add_gin, add_json, add_verb, refuse
from langsamp_jax.errors import UserError
from langsamp_jax.io.storage import location


def add(commands: Any) -> None:
    """Adds the verbs to the subparsers ``commands``."""
    _add_train(commands)
    _add_plan(commands)


def _add_train(commands: Any) -> None:
    verb = add_verb(
        commands,
        "train",
        train,
        "pretrain, or go on where the same command stopped",
        "--gin_file small_text.gin --data store --output run --gin.train.num_steps=500",
    )
    data = verb.add_mutually_exclusive_group(required=True)
    data.add_argument("--data", type=location, metavar="STORE")
    data.add_argument("--mixture", metavar="NAME", help="a seqio Mixture or Task, without a store")
    verb.add_argument("--module", metavar="M", help="for a mixture: what registers it")
    verb.add_argument("--sequence_length", type=int, metavar="N", help="for a mixture: default 512")
    verb.add_argument("--output", type=location, metavar="RUN")
    verb.add_argument(
        "--init_from",
        type=location,
        metavar="HF_DIR",
        help="start from the weights of a Hugging Face folder; its config.json decides the sizes",
    )
    add_gin(verb)
    verb.add_argument(
        "--dry_run", action="store_true", help="show configuration, sizes and mixture, and stop"
    )
    _add_several_processes(verb)


def _add_several_processes(verb: argparse.ArgumentParser) -> None:
    several = verb.add_argument_group(
        "several processes",
        "Found by themselves on TPU pods, under Slurm and in Kubernetes Jobs; else by these, or by "
        "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="a free port of process 0")
    several.add_argument("--num_processes", type=int, metavar="N")
    several.add_argument("--process_id", type=int, metavar="I", help="0 to N - 1")
    several.add_argument(
        "--start_timeout", type=float, default=300, metavar="SECONDS", help="default 300"
    )


def train(args: argparse.Namespace) -> None:
    """Trains on a store or a mixture, or shows what would be done."""
    import jax

    from langsamp_jax.data.store import Store
    from langsamp_jax.plan.dry_run import dry_run
    from langsamp_jax.training.config import configs_from_gin
    from langsamp_jax.training.loop import train

    if args.data:
        refuse(args, "--data", "module", "sequence_length")
    if args.dry_run:
        if args.mixture:
            raise UserError("--dry_run looks at a store; make one: langsamp prepare --mixture")
        jax.config.update("jax_platforms", "cpu")  # a look takes no device away from a training
        print(dry_run(args.data, configs_from_gin(), args.init_from))
        return
    if args.output is None:
        raise UserError("train needs --output RUN (or --dry_run)")
    data, configs = _live(args) if args.mixture else (Store(args.data), configs_from_gin())
    run = train(data, args.output, configs, args.init_from)
    print(f"{run.path}: evaluate it with langsamp evaluate, or give the same command to go on")


def _live(args: argparse.Namespace) -> tuple[Any, Any]:
    """Returns the Mixture that is named, as data to train on, and the configs with its rates."""
    from data_pipelines.seqio_tasks.live import MANY_TASKS, LiveMixture
    from data_pipelines.seqio_tasks.registry import open_mixture
    from langsamp_jax.training.config import configs_from_gin

    mixture = open_mixture(args.mixture, args.module)
    print(f"the rates are those of {args.mixture}, whatever mixture.rule says", file=sys.stderr)
    if mixture.num_tasks > MANY_TASKS:
        print(
            f"{mixture.num_tasks} tasks are many to read at once: prepare --mixture makes a store "
            "of them, which is faster to start and to read",
            file=sys.stderr,
        )
    configs = configs_from_gin()
    rates = dataclasses.replace(configs.mixture, rule="weights", weights=mixture.weights)
    configs = dataclasses.replace(configs, mixture=rates)
    length = 512 if args.sequence_length is None else args.sequence_length
    return LiveMixture(mixture, length, configs.train.seed, configs.train.eval_rows), configs


def _add_plan(commands: Any) -> None:
    verb = add_verb(
        commands,
        "plan",
        plan,
        "compile a training for a machine you do not have: memory, speed, traffic",
        "--gin_file langsamp_base.gin --topology v5e:4x4 --gin.model.dtype=bfloat16",
    )
    verb.add_argument(
        "--topology",
        required=True,
        metavar="NAME",
        help="v5e:4x4, v5p:4x4x4, ...; cpu:8 (simulated); here (the devices of this machine)",
    )
    add_gin(verb)
    verb.add_argument("--data", type=location, metavar="STORE", help="takes the sizes from a store")
    sizes = verb.add_argument_group("sizes without a store (default: the published run's)")
    for name in ("vocab_size", "languages", "scripts", "sequence_length"):
        sizes.add_argument(f"--{name}", type=int, metavar="N")
    verb.add_argument(
        "--find_batch",
        action="store_true",
        help="the most rows per device that fit, in place of train.global_batch_size",
    )
    add_json(verb)


def plan(args: argparse.Namespace) -> None:
    """Compiles a training for a topology, and shows the memory, time and traffic of a step."""
    from langsamp_jax.data.store import Store
    from langsamp_jax.plan.record import plan
    from langsamp_jax.plan.report import show
    from langsamp_jax.plan.search import largest_batch
    from langsamp_jax.plan.topology import topology_devices
    from langsamp_jax.training.config import configs_from_gin
    from langsamp_jax.training.setup import Sizes, table_rows

    names = ("vocab_size", "languages", "scripts", "sequence_length")
    if args.data:
        refuse(args, "--data", *names)
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    sizes = Sizes(**given)
    if args.data:
        store = Store(args.data)
        sizes = Sizes.of(store, table_rows(store, None))
    configs, devices = configs_from_gin(), topology_devices(args.topology)
    print(f"compiling for {len(devices)} devices: minutes, for a large model", file=sys.stderr)
    if args.find_batch:
        estimate = largest_batch(configs, sizes, devices, functools.partial(print, file=sys.stderr))
    else:
        estimate = plan(configs, sizes, devices)
    record = {"topology": args.topology, **estimate}
    print(json.dumps(record, indent=1) if args.json else show(record))
