"""The trainer, `python -m train`: which file does what, and where to add what.

    __main__.py       starts the command, and handles signals before anything else is imported
    command.py        the command from its arguments to its exit status
    arguments.py      the command line: options and their help texts
    options.py        the options as the rest of the trainer sees them
    config.py         their defaults, ranges and checks
    presets.py        values of options that the user does not give
    dry_run.py        --dry-run: what a run would do, and the memory that it needs

    loop.py           a whole run: resume or start it, draw its images, train, report how it ended
    session.py        the steps of one session, and when it logs, saves and previews
    trainer.py        both networks, their optimizers, and one step
    losses.py         losses, R1 penalty, moving average
    discriminator.py  StyleGAN2's discriminator
    published.py      the discriminator of a published checkpoint
    finite.py         finding numbers that are not finite
    memory.py         how much memory is used and how much there is
    signals.py        Ctrl-C and the other signals that stop a run
    progress.py       progress bar, clock, speed
    failure.py        the error that ends a run

    run_folder.py     the files of a run
    resume.py         which checkpoint a run continues from
    metadata.py       checks of a checkpoint's metadata
    stats_file.py     stats.jsonl
    preview.py        preview grids
    plot.py           `python -m train.plot`: statistics as a picture
    data/             sources of images, and patches of them

Where to add

    a data source     a class in data/ that follows `data.images.ImageSource`, and its name in data/sources.py
    a loss            losses.py: the formula; `Trainer.step`: its use; `Session.record`: its value in stats.jsonl
    an option         options.py: the field; arguments.py: its help; config.py: its range; presets.py: its value
    a logger          `Session.loggers` in session.py: a function that takes a record of statistics

cips_fast never imports this package. Random numbers come from the seed and the number of the step alone, so that a
resumed run gives the same bits as an uninterrupted one.
"""
