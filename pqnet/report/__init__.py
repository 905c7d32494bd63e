"""The report on a network as one HTML page: `layers` and `gather` find out, `drawing`, `plots` and `page` show it."""

from pqnet.report.card import model_card as model_card
from pqnet.report.page import write_report as write_report
