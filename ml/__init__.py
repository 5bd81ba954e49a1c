"""Machine learning from noisy labels: tensors in, tensors out, without the service. `python -m ml --help` runs it.

Folders, in the order in which a training uses them:

    formats/       reads archives, tables and class folders; standard library only
    data/          images as tensors: decoding, augmentation, ingest, the formats in which authors publish data sets
    noise/         kinds of label noise to inject, one file each
    scenes/        synthetic images whose background may give the label away
    networks/      network architectures, one file a family
    features/      what the frozen part of a pretrained network computes of every image, and what follows from it
    methods/       strategies against label noise, one file each; `method.py` is their interface
    blocks/        losses, mixtures, schedules and other parts that several methods share
    training/      the training loop, its schedule, sampler, checkpoints, randomness and memory
    distributed/   one training in several processes
    evaluation/    accuracies, the ranking of labels, attention maps, masks
    reports/       the figures and the self-test of a finished training
    serving/       the archive of a trained model, and the predictor that loads it
    study/         grids of methods, noises and seeds, and their tables; study files are in `study/files`
    commands/      the commands of `python -m ml`, one file each
"""
