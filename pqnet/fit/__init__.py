"""How codes are found, on plain arrays."""

from pqnet.fit.additive import fit_additive as fit_additive
from pqnet.fit.fixed import fit_fixed as fit_fixed
from pqnet.fit.intn import fit_intn as fit_intn
from pqnet.fit.kmeans import KMeansResult as KMeansResult
from pqnet.fit.kmeans import assign as assign
from pqnet.fit.kmeans import weighted_kmeans as weighted_kmeans
from pqnet.fit.pq import fit_pq as fit_pq
from pqnet.fit.scalar import fit_scalar as fit_scalar
from pqnet.fit.scalar import scalar_kmeans as scalar_kmeans
from pqnet.fit.sparse import fit_sparse as fit_sparse
