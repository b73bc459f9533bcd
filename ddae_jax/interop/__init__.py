"""Reading and writing the weights of other libraries: timm, transformers, and authors' own files.

Weights pass through as numpy arrays by name. Neither torch, timm nor transformers is imported, and
nothing that a file contains is executed. The modules, in the order in which a published encoder is
read:

* ``backbones``: :func:`~ddae_jax.interop.backbones.read_backbone`, the entry, for a folder or file.
* ``library_folders``: the config in a folder, completed from ``architectures.json``. ``json_files``
  reads the JSON.
* ``weight_files``: the format of a file, and its arrays by name. ``file_signatures`` recognises
  files that are no weights, and ``digests`` detects damaged arrays.
* ``torch_files``: the two formats of ``torch.save``. ``restricted_pickle`` reads the pickles in
  them, and ``pickle_objects`` has all objects that a pickle may make.
* ``encoder_search``: which of a file's arrays are the encoder's.
* ``weights_to_params``: conversion to parameters of this package, by the tables in
  ``weight_names``.
* ``architecture``: what the parameters show of the encoder, and the user's hints for the rest.
* ``preprocessing``: how images are resized and cropped for it, and how its features are pooled.

Two more entries: ``decoders`` reads those of masked autoencoders, ``tokenizers`` those of BEiT v2.
For export, ``library_export`` writes folders that timm and transformers load, and
``params_to_weights`` converts the parameters by the same tables.
"""
