"""The migrator: data scattered over Redis databases onto one database and one tape, while writers go on."""

from onetape.migrate.ledger.entry import Entry, Outcome, Run
from onetape.migrate.ledger.ledger import Ledger
from onetape.migrate.migration import Migration, PlanCheck, Reason, Status
from onetape.migrate.phases.history import Transition
from onetape.migrate.phases.move import Move
from onetape.migrate.phases.phase import Phase
from onetape.migrate.plans.plan import Case, Plan, Rule
from onetape.migrate.proving.conservation import Conservation
from onetape.migrate.proving.proof import Proof, check_proof, make_proof
from onetape.migrate.report import EXIT_FAILURES, EXIT_OK, EXIT_REFUSED, EXIT_SKIPS, Report
from onetape.migrate.steps.gate import Limits
from onetape.migrate.verifying.verdict import Verification
from onetape.migrate.wire.endpoint import Endpoint

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
