"""Models from the outside world and back: Hugging Face folders, GGUF files, a sentence encoder, Flax Linen.

    from jaxpt.interop import hugging_face, gguf, linen
    embed = jaxpt.interop.embedder()           # texts -> unit vectors [N, 384]

Files are read with distrust: a `jaxpt.data.documents.DataError` names the file and what is wrong with it, and nothing in
a file is ever executed.
"""
