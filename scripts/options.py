"""From an agent's configuration class to a command line: a flag per field, defaults from presets and files."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_type_hints

import torch
import tyro
from stable_baselines3.common.utils import get_device

from ..agents.core.config import Config, FieldInfo, Range, describe
from ..agents.core.data.dataset_files import env_of
from ..agents.core.plain_yaml import read_yaml
from ..agents.core.sb3_names import as_fields
from ..agents.presets import preset, preset_for
from ..agents.tpo import Search
from ..envs import is_batched
from ..envs.naming import nearest
from ..wrappers.delays import parse_pair
from ..wrappers.random_delay import Form
from ..wrappers.specs import named, unasked
from .peers import Peer, is_trusted, name_of, trainable
from .runs import read_run
from .worlds import World

T = TypeVar("T")


def flag_of(name: str) -> str:
    """:return: how a field is written on the command line."""
    return f"--{name.replace('_', '-')}"


@dataclass(frozen=True, kw_only=True)
class Flags(Config):
    """What a command is told: its fields are checked as hyper-parameters are, and named as on the command line."""

    _label = staticmethod(flag_of)


@dataclass(frozen=True, kw_only=True)
class TurnOptions(Flags):
    """What every comparison is told whose sides take turns, see :func:`~headway.scripts.timing.take_turns`."""

    threads: Annotated[int, Range(0)] = 1
    """Threads of torch. 0 leaves torch's own choice."""

    rounds: Annotated[int, Range(1)] = 7
    """Rounds, in each of which every side has its turn; medians over rounds are compared."""

    seconds: Annotated[float, Range(0.001, unit="s")] = 1.0
    """Length of a turn, about, and at least one of what is timed."""

    json: Path | None = None
    """Write every measurement to this file."""

    overwrite: bool = False
    """Allow --json to replace a file."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions(Flags):
    """What a training run needs besides the agent's hyper-parameters."""

    env: str = ""
    """Environment: Id-v0, or module:Id-v0 to import the module that registers it. Required unless --resume is given, or
    a --dataset that says where it was recorded."""

    dataset: str | None = None
    """Learn from recorded steps instead of in the environment, which then only evaluates: a Minari id, ns/name-v0, or a
    file (`headway datasets list`). Steps are gradient steps then."""

    seeds: str | None = None
    """With --dataset: train several seeds at once, as one stack of networks: a count, a range (3-7) or a list (2,5,9).
    Each has a run folder of its own in --run-dir, s0 and so on."""

    delay: str | None = None
    """Random delays of observations and of actions, such as wifi,wifi or constant:2,2 or uniform:0-3,constant:1."""

    delay_form: Form = "dict"
    """What is observed behind delays: dict (with the actions on their way and the ages of what is seen), the same as
    one flat vector, or bare (the observation alone)."""

    start_from: Path | None = None
    """Begin with this trained policy and value, of an agent that takes one (TPO: of PPO): a policy file, or a run
    folder."""

    max_episode_steps: Annotated[int, Range(1, unit="environment steps")] | None = None
    """Where episodes are cut, for an environment that does not end by itself; it replaces a limit that there is."""

    total_timesteps: Annotated[int, Range(1, unit="environment steps")] = 100_000
    """Length of the run, over all environments together."""

    seed: Annotated[int, Range(0, 4_000_000_000)] = 0
    """Seed of every random stream; equal seeds (and threads) give equal runs."""

    n_envs: Annotated[int, Range(0)] = 0
    """Environments stepped together. 0: one; of a population, one for each episode of a generation; of TPO, 16."""

    vec: Literal["auto", "dummy", "subproc"] = "auto"
    """How several environments are stepped: dummy (in turn, in this process), subproc (a process each), or auto: all at
    once where the environment has a batched form, as headway/… have, and else in turn."""

    workers: Annotated[int, Range(0)] = 0
    """Workers of Ray that play a population's episodes, on this machine or on those of --ray-address (extra
    distributed). 0: this process does. The results are the same."""

    ray_address: str | None = None
    """Ray cluster of the --workers, such as 10.0.0.1:6379; without, they are on this machine."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:0, …"""

    env_device: str = "auto"
    """Where environments in one batch are simulated: cpu, cuda, …; auto takes the agent's GPU, if it has one and MuJoCo
    Warp is installed, and else the CPU."""

    threads: Annotated[int, Range(0)] = 0
    """Threads of torch on the CPU, and of MuJoCo for environments in one batch. 0: one per core, but for torch a single
    one where networks are no wider than 128, or where others use more than half of the cores; it is printed at the
    start, and kept on resume."""

    preset: str = "auto"
    """Preset whose values stand in for the defaults; auto takes the environment's own, or that of another version of
    it, if there is one, else default."""

    config: Path | None = None
    """YAML file of flag names and values, or a run's config.json; it overrides the preset, flags override it."""

    run_dir: Path | None = None
    """Folder of the run, which must not exist yet; by default runs/<env>/<agent>/<time>-s<seed>."""

    resume: Path | None = None
    """Run folder to go on with, from its newest checkpoint and with its own settings."""

    trust_env: bool = False
    """With --resume: make the environment that the folder names even if that imports a module; repeating its --env does
    as well."""

    eval_every: Annotated[int, Range(0, unit="environment steps")] = 5_000
    """Distance between evaluations; the best policy is kept as best.zip. 0 evaluates only before and after."""

    eval_search: str | None = None
    """Look ahead in evaluations, which training knows nothing of: tree:32,8 and the like, see headway evaluate
    --search."""

    eval_episodes: Annotated[int, Range(1)] = 5
    """Episodes per evaluation (before and after training: twice as many)."""

    checkpoint_every: Annotated[int, Range(0, unit="environment steps")] = 10_000
    """Distance between checkpoints; 0 writes one only when the run is interrupted, and at its end."""

    keep_checkpoints: Annotated[int, Range(1)] = 2
    """Newest checkpoints that are kept."""

    verify_resume: bool = False
    """At the first checkpoint, step a copy of the environment, compare, and say whether a resumed run is exact."""

    log_every: Annotated[int, Range(1, unit="environment steps")] = 1_000
    """Distance between lines in progress.csv and TensorBoard."""

    video: bool = False
    """Record the final policy to final.mp4."""

    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.eval_search is not None:
            Search.of(self.eval_search)
        if self.delay is not None:
            parse_pair(self.delay)
        elif self.delay_form != "dict":
            raise ValueError(f"--delay-form {self.delay_form} says how delays are observed: it needs --delay")

    @property
    def rows(self) -> int:
        """How many environments step together."""
        return self.n_envs or 1

    @property
    def world(self) -> World:
        """The environment, delays included."""
        return World(self.env, self.delay, self.delay_form, max_episode_steps=self.max_episode_steps)


def check_device(name: str, flag: str = "--device") -> None:
    """Refuse a device that torch does not know or does not find; it would otherwise fall back to the CPU in silence.

    :param name: the value of the flag
    :param flag: the flag
    :raises ValueError: with the devices there are
    """
    count = torch.cuda.device_count()
    found = ["auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count))]
    if name not in found:
        raise ValueError(f"{flag} {name}: there is no such device here; choose from {', '.join(found)}")


def refuse_unasked(world: World, path: Path) -> None:
    """Refuse to make an environment on a file's word alone, where that would do more than to look it up.

    :param world: that a file names, made from its spec where there is one
    :param path: of the file
    :raises ValueError: it would import a module, or write files
    """
    spec = named(world.env_id) if world.spec is None else world.spec
    if (what := unasked(spec)) is not None:
        raise ValueError(
            f"{path} names the environment {world.env_id}, which would {what}, and a file does not decide that: pass "
            f"--env {world.env_id}, or --trust-env if you trust everything that the file says of it"
        )


def simulated_on(options: TrainOptions) -> str | None:
    """Where a run's environments step as one batch.

    :param options: of the run
    :return: the device; None where they do not
    :raises ValueError: ``--env-device`` names one that is not there, or there is no batch to put on it
    """
    check_device(options.env_device, "--env-device")
    if options.vec != "auto" or not is_batched(options.env):
        if options.env_device.startswith("cuda"):
            raise ValueError(
                f"--env-device {options.env_device}: {options.env} steps on the CPU"
                + (f" with --vec {options.vec}" if is_batched(options.env) else "; only a batched form runs on a GPU")
            )
        return None
    if options.env_device != "auto":
        return options.env_device
    agent_device = get_device(options.device)
    return str(agent_device) if agent_device.type == "cuda" and find_spec("mujoco_warp") else "cpu"


EXECUTION = (
    *("device", "threads", "workers", "ray_address", "progress", "video", "total_timesteps", "keep_checkpoints"),
    "verify_resume",
)
"""Options that may change when a run is resumed; the others would make it another run."""


@dataclass(frozen=True)
class Run:
    """A resolved command.

    :param agent_class: the agent, or a :class:`~headway.scripts.peers.Peer`
    :param config: its hyper-parameters
    :param options: everything else
    """

    agent_class: type[Any]
    config: Any
    options: TrainOptions

    @property
    def name(self) -> str:
        """What the agent is called: SAC, module:Class, sb3:SAC."""
        return name_of(self.agent_class)

    def values(self) -> dict[str, Any]:
        """:return: every option and hyper-parameter by name."""
        return {**vars(self.options), **{name: getattr(self.config, name) for name in describe(type(self.config))}}

    def to_dict(self) -> dict[str, Any]:
        """:return: the run in JSON's terms, as ``config.json`` holds it."""
        options = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self.options).items()}
        del options["trust_env"]  # which is of one command, and never a folder's to say
        return {"agent": self.name, "options": options, "config": self.config.to_dict()}


def parse_train(name: str, arguments: Sequence[str]) -> Run | None:
    """Parse ``headway train NAME …``.

    :param name: the agent; "" when the run to resume tells
    :param arguments: the rest of the command line
    :return: the resolved run; None if ``--help`` was asked for, and printed
    :raises ValueError: a value, preset or file that does not fit; the message says what would
    """
    early, name = early_flags(arguments, "env", "dataset", "preset", "config", "resume"), _typed(name)
    if "resume" in early:
        return _resumed(name, Path(early["resume"]), arguments)
    if not name:
        raise ValueError("which agent? headway train AGENT --env ID (`headway agents` lists them)")
    cls = trainable(name)
    in_file = _file_values(early["config"], cls) if "config" in early else {}
    early = {key: str(in_file[key]) for key in ("env", "dataset", "preset") if in_file.get(key) is not None} | early
    if "env" not in early and "dataset" in early:
        in_file["env"] = early["env"] = recorded_in(early["dataset"])
    run = _parse(cls, arguments, _preset_values(name, early, cls) | in_file)
    if run is not None and not run.options.env:
        raise ValueError("which environment? pass --env Id-v0 (`headway envs` lists them)")
    if run is not None and run.options.trust_env:
        raise ValueError("--trust-env is about the environment that a folder names: it goes with --resume")
    if run is None:
        return None
    _check_source(run)
    rows = run.options.n_envs or getattr(run.config, "default_envs", 1)
    run = dataclasses.replace(run, options=dataclasses.replace(run.options, n_envs=rows))
    _check_round(run)
    return run


def recorded_in(dataset: str) -> str:
    """Say where a data set was recorded.

    :param dataset: its id or file
    :return: the id of the environment
    :raises ValueError: it does not say, or making it would import something
    """
    env_id = env_of(dataset)
    if env_id is None:
        raise ValueError(f"{dataset} does not say where it was recorded: pass --env Id-v0, in which to evaluate")
    if (what := unasked(named(env_id))) is not None:
        raise ValueError(
            f"{dataset} was recorded in {env_id}, which would {what}, and data do not decide that: pass --env {env_id}"
        )
    return env_id


def _check_source(run: Run) -> None:
    """See that data are given to an agent that learns from them, and to no other."""
    takes, options = "dataset" in getattr(run.agent_class, "arguments", ()), run.options
    if options.dataset is not None and not takes:
        raise ValueError(f"{run.name} learns in environments: it takes no --dataset")
    if options.dataset is None and takes and not run.agent_class.goes_online:
        raise ValueError(f"{run.name} learns from data: pass --dataset (`headway datasets list` lists those there are)")
    if options.seeds is not None and options.dataset is None:
        raise ValueError("--seeds trains several seeds at once from data: it goes with --dataset")
    _check_workers(run)
    for name in ("delay", "verify_resume", "n_envs", "vec", "env_device") if options.dataset is not None else ():
        if getattr(options, name) != describe(TrainOptions)[name].default:
            raise ValueError(f"{flag_of(name)} is about the environment to learn in, and this run learns from data")
    if options.seeds is not None and options.seed != describe(TrainOptions)["seed"].default:
        raise ValueError(f"--seed {options.seed} beside --seeds {options.seeds}: name all seeds in --seeds")
    if options.start_from is not None and "start_from" not in getattr(run.agent_class, "arguments", ()):
        raise ValueError(f"{run.name} begins with nothing: it takes no --start-from")


def _check_workers(run: Run) -> None:
    """See that episodes are played elsewhere only where that can be."""
    options = run.options
    if options.workers and "workers" not in getattr(run.agent_class, "execution", ()):
        raise ValueError(f"--workers {options.workers}: they play the episodes of a population, {run.name} has none")
    if options.workers and options.vec == "subproc":
        raise ValueError(f"--workers {options.workers} play by themselves: leave --vec subproc out")
    if options.ray_address is not None and not options.workers:
        raise ValueError("--ray-address says where workers are: say how many with --workers")


def _check_round(run: Run) -> None:
    """See that a round of steps, which is always finished, is no longer than the run itself."""
    options, frequency = run.options, getattr(run.config, "train_freq", 1)
    if options.dataset is None and isinstance(frequency, int) and frequency * options.n_envs > options.total_timesteps:
        raise ValueError(
            f"--train-freq {frequency} makes rounds of {frequency * options.n_envs:,} steps, longer than "
            f"--total-timesteps {options.total_timesteps:,}: lower the one or raise the other"
        )


def early_flags(arguments: Sequence[str], *names: str) -> dict[str, str]:
    """Read the few flags that decide the other flags' defaults.

    :param arguments: the command line
    :param names: of these flags
    :return: their values as texts, of those that are given
    :raises ValueError: one has no value
    """
    found = {}
    for token, following in zip(arguments, [*arguments, ""][1:], strict=True):
        flag, given, value = token.partition("=")
        name = flag.removeprefix("--")
        if flag.startswith("--") and name in names:
            value = value if given else following
            if not value or (not given and value.startswith("-")):
                raise ValueError(f"{flag} needs a value")
            found[name] = value
    return found


def _preset_values(name: str, early: Mapping[str, str], cls: type[Any]) -> dict[str, Any]:
    chosen = early.get("preset", "auto")
    if ":" in name:
        if chosen not in ("auto", "default"):
            raise ValueError(f"agent {name} brings no preset {chosen!r}: give its values by --config FILE.yaml")
        return {}
    if chosen == "auto":
        chosen = preset_for(name, early.get("env", "").rpartition(":")[2])
    return _as_meant(preset(name, chosen, cls.config_class), cls)


def _file_values(file: str, cls: type[Any]) -> dict[str, Any]:
    try:
        read = read_yaml(Path(file).read_text(), file) or {}
    except FileNotFoundError as cause:
        raise FileNotFoundError(f"--config {file}: there is no such file") from cause
    except UnicodeDecodeError as cause:
        raise ValueError(f"{file} is not YAML: {cause}") from cause
    if not isinstance(read, dict):
        raise ValueError(f"{file} must hold names and values, one 'name: value' per line")
    if {"agent", "options", "config"} <= read.keys():
        read = _settings_of_run(file, read, cls)
    known = _fields(cls).keys() - {"config", "resume"}
    values: dict[str, Any] = {}
    for key, value in read.items():
        name = str(key).replace("-", "_")
        if name in values:
            raise ValueError(f"{file} has the key {name!r} twice")
        try:
            lacks = name not in known and not as_fields(cls.config_class, {name: value})
        except TypeError as cause:
            raise ValueError(f"{file}: {cause}") from cause
        if lacks:
            continue  # a value of Stable-Baselines3's that asks for nothing
        if name not in known:
            raise ValueError(f"{file} has an unknown key {name!r}: {nearest(name, known)}")
        values[name] = value
    return _as_meant(values, cls)


def _settings_of_run(file: str, read: Mapping[str, Any], cls: type[Any]) -> dict[str, Any]:
    """What a run's ``config.json`` says but where the run was, so that the same can be run again."""
    if read["agent"] != name_of(cls):
        raise ValueError(f"{file} is of a run of {read['agent']}, not {name_of(cls)}")
    if not isinstance(read["options"], dict) or not isinstance(read["config"], dict):
        raise ValueError(f"{file} is broken: options and config must hold names and values")
    return {k: v for k, v in {**read["options"], **read["config"]}.items() if k not in ("run_dir", "resume", "config")}


def _as_meant(values: Mapping[str, Any], cls: type[Any]) -> dict[str, Any]:
    """Undo what YAML 1.1 makes of ``3e-4``, ``1e5`` and ``none`` (texts) and ``off`` (False); make paths of texts."""
    known = _fields(cls)
    return {key: _value_as_meant(value, known[key].annotation) for key, value in values.items()}


def _plain_types(annotation: Any) -> tuple[Any, ...]:
    """The types in a union and the values in a Literal, at any depth of it."""
    parts = get_args(annotation)
    return tuple(plain for part in parts for plain in _plain_types(part)) if parts else (annotation,)


def on_or_off(value: Any, annotation: Any) -> Any:
    """Undo what YAML 1.1 makes of ``off``.

    :param value: as it was read
    :param annotation: the type of its field
    :return: "off" instead of False where the type has that word
    """
    return "off" if value is False and "off" in _plain_types(annotation) else value


def _value_as_meant(value: Any, annotation: Any) -> Any:
    value, types = on_or_off(value, annotation), _plain_types(annotation)
    if isinstance(value, str) and Path in types:
        return Path(value)
    if isinstance(value, str) and NoneType in types and value.lower() == "none":
        return None
    if isinstance(value, str) and float in types:
        with contextlib.suppress(ValueError):
            return float(value)
    if int in types and float not in types and isinstance(value, (str, float)):
        return _whole(value)
    return value


def _whole(value: Any) -> Any:
    """:return: a whole number written as 1e5 as an integer; anything else as it is"""
    if isinstance(value, str) and not re.fullmatch(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+", value):
        return value
    return int(float(value)) if float(value).is_integer() else value


def _tokens(arguments: Sequence[str], flags: type[Any]) -> list[str]:
    """A command line in tyro's terms: ``none`` as None, whole numbers like 1e5 in digits, "1 episode" as two words."""
    hints = get_type_hints(flags)
    types: tuple[Any, ...] = ()
    found = []
    for argument in arguments:
        flag, given, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        if flag:
            types = _plain_types(hints.get(flag.removeprefix("--").replace("-", "_"), str))
        values = [value] if given or not flag else []
        if types and str not in types and Path not in types:  # what stands before all flags is left as it is
            values = [word for value in values for word in value.split() or [value]]
        if NoneType in types:
            values = ["None" if value.lower() == "none" else value for value in values]
        if int in types and float not in types and str not in types:
            values = [str(_whole(value)) for value in values]
        found += [f"{flag}={values[0]}"] if given and len(values) == 1 else [flag, *values] if flag else values
    return found


def _fields(cls: type[Any]) -> dict[str, FieldInfo]:
    """Every option and every hyper-parameter of an agent."""
    return {**describe(TrainOptions), **describe(cls.config_class)}


def _flags_class(cls: type[Any]) -> type:
    """A dataclass of them, each with its documentation, range and unit as help."""
    rows = []
    for info in _fields(cls).values():
        annotation: Any = info.annotation
        annotation = Annotated[annotation, tyro.conf.arg(help=info.help)]
        rows.append((info.name, annotation, dataclasses.field(default=info.default)))
    return dataclasses.make_dataclass(f"{cls.__name__}Flags", rows, frozen=True, kw_only=True)


def parse_flags(
    flags: type[T], arguments: Sequence[str], prog: str, *, default: T | None = None, description: str | None = None
) -> T | None:
    """Parse a command line into a dataclass.

    :param flags: the dataclass
    :param arguments: the command line
    :param prog: name of the command, for its help
    :param default: values of the flags that are not given, instead of the dataclass's own
    :param description: for the help, instead of the dataclass's docstring
    :return: the dataclass filled in; None if ``--help`` was asked for, and printed
    :raises ValueError: an unknown flag (the nearest ones are named) or a value of the wrong type
    """
    complaint = io.StringIO()
    parsed: T
    try:
        with contextlib.redirect_stderr(complaint):
            parsed, unknown = tyro.cli(
                flags,
                args=_tokens(arguments, flags),
                prog=prog,
                description=description,
                default=tyro.MISSING_NONPROP if default is None else default,
                return_unknown_args=True,
            )
    except SystemExit as stop:
        if not stop.code:
            return None
        raise ValueError(f"{_first_sentence(complaint.getvalue())}; see {prog} --help") from None
    if unknown:
        known = [flag_of(field.name) for field in dataclasses.fields(flags)]  # type: ignore[arg-type]
        flag = unknown[0].partition("=")[0]
        raise ValueError(f"{prog} takes no {flag}: {nearest(flag.replace('_', '-'), known, f'see {prog} --help')}")
    return parsed


def run_command(
    group: str,
    commands: Mapping[str, tuple[type[Any], Callable[[Any], Any]]],
    arguments: Sequence[str],
    usage: str,
) -> int:
    """Run one of several commands that begin with the same word.

    :param group: the word
    :param commands: flags and work of each, by name
    :param arguments: the command line after the word
    :param usage: what ``--help`` prints
    :return: exit code
    :raises ValueError: an unknown command
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage, end="")
        return 0
    name, *rest = arguments
    if name not in commands:
        raise ValueError(f"there is no command '{group} {name}': {nearest(name, commands)}")
    flags, work = commands[name]
    return run_flags(flags, rest, f"headway {group} {name}", work)


def run_flags(cls: type[T], arguments: Sequence[str], program: str, work: Callable[[T], Any]) -> int:
    """Parse a command's flags and do its work.

    :param cls: the dataclass of its flags
    :param arguments: the command line after the command's name
    :param program: what it is called in its help
    :param work: what is done with the flags; it may return an exit code
    :return: exit code
    """
    options = parse_flags(cls, arguments, program)
    result = None if options is None else work(options)
    return result if isinstance(result, int) else 0


def _first_sentence(box: str) -> str:
    """What tyro has to say, without the frame, the title and the footnotes it puts around it."""
    lines = [line.strip(" │") for line in box.splitlines()[1:]]
    body: list[str] = []
    for line in lines:
        if body and (not line or line[0] in "─-"):
            break
        if line and line[0] not in "─-":
            body.append(line)
    return re.sub(r"^(Error parsing )?(\w*Options: )?", "", " ".join(body)).rstrip(".")


def _run(cls: type[Any], values: Mapping[str, Any]) -> Run:
    options, known = describe(TrainOptions), describe(cls.config_class)
    config = cls.config_class.from_dict({key: value for key, value in values.items() if key in known})
    if issubclass(cls, Peer):
        cls.settings(config)  # a mistake in them is told now
    return Run(cls, config, TrainOptions(**{key: value for key, value in values.items() if key in options}))


def _parse(cls: type[Any], arguments: Sequence[str], defaults: Mapping[str, Any]) -> Run | None:
    parsed = parse_flags(
        flags := _flags_class(cls),
        arguments,
        f"headway train {_typed(name_of(cls))}",
        default=flags(**_run(cls, defaults).values()),
        description=f"Train {cls.__name__}. {cls.__doc__.splitlines()[0] if cls.__doc__ else ''}",
    )
    return None if parsed is None else _run(cls, vars(parsed))


def _typed(name: str) -> str:
    """:return: an agent's name as it is written on a command line."""
    return name if ":" in name else name.lower()


def _resumed(name: str, folder: Path, arguments: Sequence[str]) -> Run | None:
    """The run in a folder, with the few changes that leave it the same run."""
    saved = read_run(folder)
    agent = _typed(str(saved["agent"]))
    if not name and not is_trusted(agent):
        raise ValueError(
            f"{folder} is a run of {agent}, and a folder does not decide what is imported: if you trust it, name the "
            f"agent, headway train {agent} --resume {folder}"
        )
    if name and name != agent:
        raise ValueError(f"{folder} is a run of {agent}, not {name}")
    cls = trainable(agent)
    known = _fields(cls)
    before = _as_meant({k: v for k, v in {**saved["options"], **saved["config"]}.items() if k in known}, cls)
    before["trust_env"] = False  # is nothing that a folder can ask for
    try:
        original = _run(cls, before).values()
    except (TypeError, ValueError) as cause:
        raise ValueError(f"{folder / 'config.json'} is broken ({cause}): restore it, or start a new run") from cause
    run = _parse(cls, arguments, before)
    if run is None:
        return None
    if not (run.options.trust_env or "env" in early_flags(arguments, "env")):
        refuse_unasked(run.options.world, folder)
    for key, value in run.values().items():
        if key not in (*EXECUTION, "resume", "trust_env") and value != original[key]:
            raise ValueError(
                f"{flag_of(key)} is {original[key]} in {folder} and cannot become {value}: "
                "that would be another run; leave the flag out, or start one without --resume"
            )
    return run
