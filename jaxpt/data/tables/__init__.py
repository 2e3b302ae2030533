"""Tables with the text around them: from pages or generated, linearised for sequence models, asked about.

table           Table, equal ones by header and first row, files of tables
linear          a table as one line of text and back, every token with its cell
sources, tasks  tables without downloads, and questions about them with known answers
batches         what runs train on
extract         tables out of pages, also as a Beam pipeline
seqio_mixture   the pretraining mixture as SeqIO tasks
"""

from jaxpt.data.tables.linear import Linear, linearize, parse
from jaxpt.data.tables.table import Table, TableText

__all__ = ["Linear", "Table", "TableText", "linearize", "parse"]
