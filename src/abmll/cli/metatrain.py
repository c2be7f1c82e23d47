"""`abmll metatrain`: learn a prior from a suite's train tasks, into a run folder."""

from __future__ import annotations

from pathlib import Path

from abmll.cli.console import TrainingBar, loading, say, warn_of_crowding, warn_of_leaks, warn_of_truncation
from abmll.cli.parsing import Settings
from abmll.errors import UserError
from abmll.experiment.quiet import quiet

GROUPS = ("model", "adapter", "scoring", "context", "meta", "posterior", "seed")
STEPS = "meta.episodes"


def metatrain(
    settings: Settings,
    *,
    suite: str | None = None,
    output: Path | None = None,
    preset: str | None = None,
    resume: Path | None = None,
    save_every: int = 50,
    trackers: str = "",
    weight_prior_floor: float | None = None,
    overwrite: bool = False,
) -> None:
    """Learn a prior over adapters and write it as a run folder.

    Args:
        settings: what the user gave of RunConfig.
        suite: a built-in name or a path; its train tasks are learned from.
        output: the run folder to write.
        preset: settings of a published system, which other options change; unless named, that of the meta-learner
            (`abmll`).
        resume: a run folder to go on with; its own settings, suite and output are used.
        save_every: steps between checkpoints.
        trackers: names of experiment trackers that accelerate knows, such as tensorboard,wandb.
        weight_prior_floor: also make the empirical prior over the weights, which posteriors map, laplace and blob use
            from then on: the mean square distance that adaptation moves each weight on the train tasks, plus this
            number (1e-6 is a start; choose it on validation tasks). Null: none is made.
        overwrite: replace an output folder that exists.
    """
    from abmll.experiment import folders
    from abmll.experiment.config import check, merge, read_yaml
    from abmll.experiment.grid import check_floor
    from abmll.experiment.presets import default_config
    from abmll.experiment.presets import preset as preset_config
    from abmll.experiment.trackers import tracking
    from abmll.tasks import load_suite, suite_hash

    facts = {}
    if resume is not None:
        if preset is not None or (output is not None and output != resume):
            raise UserError("--resume goes on in the run's own folder with its own settings; leave the others out")
        output, base = resume, read_yaml(resume / folders.CONFIG)
        facts = folders.read_json(resume / folders.PROVENANCE)
        suite = suite or facts.get("suite")
        weight_prior_floor = weight_prior_floor or facts.get("weight_prior_floor")
    else:
        base = default_config(settings) if preset is None else preset_config(preset)
    if suite is None or output is None:
        raise UserError(f"metatrain needs {'--suite' if suite is None else '--output'}; --help lists the options")
    config = merge(base, settings)
    check(config)
    if config.meta.name == "none":
        raise UserError("meta-learner 'none' learns nothing; use a base model as START of adapt or evaluate instead")
    if weight_prior_floor is not None:
        check_floor(weight_prior_floor, config.adapter.latent)
    if save_every < 1:
        raise UserError(f"--save_every {save_every}; at least 1 is needed")
    tasks = load_suite(suite)
    if not tasks.train:
        raise UserError(f"suite {suite!r} has no train tasks to learn from; put task files into its train part")
    folders.writable(output, suite, Path(config.model.name) / "config.json")
    if resume is None:
        folders.refuse_existing(output, overwrite)
    elif facts.get("suite_hash") != suite_hash(tasks):
        raise UserError(f"suite {suite!r} is not what {resume} was begun with; resume with the same rows")
    track = tracking([name.strip() for name in trackers.split(",") if name.strip()], output)

    loading(config.model.name)
    quiet()
    from abmll.experiment import metatrain as learn
    from abmll.experiment.empirical import with_empirical_prior
    from abmll.experiment.models import add_adapter, load_base
    from abmll.posterior import NonFiniteLossError

    base_model, tokenizer = load_base(config.model, config.scoring.name)
    model = add_adapter(base_model, config.adapter, config.seed)
    steps = -(-config.meta.episodes // config.meta.tasks_per_step)
    try:
        with TrainingBar("meta-training", steps) as bar, track(config) as others:
            prior = learn(
                model,
                tokenizer,
                tasks.train,
                config,
                output=output,
                resume=resume is not None,
                overwrite=overwrite,
                save_every=save_every,
                observers=(bar, *others),
                facts={"suite": suite, "suite_hash": suite_hash(tasks), "weight_prior_floor": weight_prior_floor},
            )
        if weight_prior_floor is not None:
            say("adapting to every train task once more, for the empirical prior")
            prior = with_empirical_prior(prior, tasks.train, weight_prior_floor)
            prior.save_pretrained(output / folders.PRIOR, overwrite=True)
    except NonFiniteLossError as error:
        raise UserError(f"{error}; the last good state is kept in {output / 'checkpoint.pt'}") from error
    except KeyboardInterrupt:
        kept = f"the state is kept, go on with: abmll metatrain --resume {output}"
        raise KeyboardInterrupt(f"interrupted; {kept}") from None
    warn_of_leaks(tasks)
    warn_of_truncation(len(prior.scorer.truncated), config.scoring.max_length)
    warn_of_crowding(len(prior.scorer.crowded), prior.scorer.shots, config.scoring.max_length)
    print(f"prior: {output / folders.PRIOR}")
    print(f"next:  abmll adapt {output} --data FILE --output DIR")
