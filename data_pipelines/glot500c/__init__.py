"""Glot500-c as a TFDS dataset, one config per language-script. Importing this registers it.

The corpus is not downloaded but read from a folder or bucket, TFDS's ``manual_dir``:

    from data_pipelines import glot500c
    config = tfds.download.DownloadConfig(manual_dir="gs://my_bucket/glot500c")
    tfds.load("glot500c/deu_Latn", data_dir=data_dir, split="train",
              download_and_prepare_kwargs={"download_config": config})

Once that was called for each of ``names``, seqio reads them, and ``langsamp prepare --mixture
glot500c`` packs them, with a module of these lines:

    vocabulary = TokenizerVocabulary("xlmr/sentencepiece.bpe.model")
    features = output_features(vocabulary, names)
    for name in names:
        seqio.TaskRegistry.add(
            f"glot500c:{name}",
            source=seqio.TfdsDataSource(f"glot500c/{name}:1.0.0", data_dir, splits=["train"]),
            preprocessors=[encode_lines(vocabulary), AddLanguageScript(name, features)],
            output_features=features,
        )
    rate = functools.partial(seqio.mixing_rate_num_examples, temperature=1 / 0.3)
    seqio.MixtureRegistry.add("glot500c", [f"glot500c:{name}" for name in names], rate)
"""

from data_pipelines.glot500c.glot500c_dataset_builder import Builder

__all__ = ["Builder"]
