"""Files: models, statistics, and arrays that others recorded. Everything is checked before anything is built."""

from pqnet.io.arrays import read_arrays as read_arrays
from pqnet.io.arrays import read_numpy as read_numpy
from pqnet.io.container import read_container as read_container
from pqnet.io.container import write_container as write_container
from pqnet.io.digest import add_content as add_content
from pqnet.io.digest import append_digest as append_digest
from pqnet.io.digest import network_digest as network_digest
from pqnet.io.digest import without_digest as without_digest
from pqnet.io.files import check_output as check_output
from pqnet.io.files import output_folder as output_folder
from pqnet.io.files import replaced as replaced
from pqnet.io.model_file import Golden as Golden
from pqnet.io.model_file import graph_content as graph_content
from pqnet.io.model_file import graph_from_bytes as graph_from_bytes
from pqnet.io.model_file import graph_nbytes as graph_nbytes
from pqnet.io.model_file import graph_to_bytes as graph_to_bytes
from pqnet.io.model_file import load_graph as load_graph
from pqnet.io.model_file import params_content as params_content
from pqnet.io.model_file import params_from as params_from
from pqnet.io.model_file import relative_differences as relative_differences
from pqnet.io.model_file import save_graph as save_graph
from pqnet.io.rows import FileArray as FileArray
from pqnet.io.rows import FileRows as FileRows
from pqnet.io.rows import open_arrays as open_arrays
from pqnet.io.rows import read_rows as read_rows
