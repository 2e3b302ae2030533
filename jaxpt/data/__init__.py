"""Data: corpora -> documents -> token records -> plan -> batches.

In the order a batch is made: `documents` and `corpora` (text with an id, a domain and a licence), `split`
(train or validation), `vocabularies`, `prepare` and `shards` (tokenised records on disk), `records` (random
access), `packing` (sequences of S tokens), `plan` (step -> sequences), `loader` (batches). `seqio_tasks`
and `beam_prepare` are the same preparation through SeqIO and Beam; they alone need the `data` extra.
`tables` are rows of cells with the text around them, as text and as questions.
Nothing heavy is imported here.
"""
