"""The migrator: data scattered over Redis databases onto one database and one tape, while writers go on."""

from onetape.migrate.conservation import Conservation
from onetape.migrate.endpoint import Endpoint
from onetape.migrate.gate import Limits
from onetape.migrate.history import Transition
from onetape.migrate.ledger import Entry, Ledger, Outcome, Run
from onetape.migrate.migration import Migration, PlanCheck, Reason, Status
from onetape.migrate.move import Move
from onetape.migrate.phase import Phase
from onetape.migrate.plan import Case, Plan, Rule
from onetape.migrate.proof import Proof, check_proof, make_proof
from onetape.migrate.report import EXIT_FAILURES, EXIT_OK, EXIT_REFUSED, EXIT_SKIPS, Report
from onetape.migrate.verdict import Verification

__all__ = [
    "EXIT_FAILURES",
    "EXIT_OK",
    "EXIT_REFUSED",
    "EXIT_SKIPS",
    "Case",
    "Conservation",
    "Endpoint",
    "Entry",
    "Ledger",
    "Limits",
    "Migration",
    "Move",
    "Outcome",
    "Phase",
    "Plan",
    "PlanCheck",
    "Proof",
    "Reason",
    "Report",
    "Rule",
    "Run",
    "Status",
    "Transition",
    "Verification",
    "check_proof",
    "make_proof",
]
