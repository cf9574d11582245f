"""What no schema can say of a good request, put right before it is sent. Bad requests are sent as they were made."""

import datetime
import os
import re

import schemathesis

TENANTS = "JOBGATE_CONTRACT_TENANTS" in os.environ
# At most five years ahead, and still to come whenever this is run.
NEXT_YEAR = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=365)).isoformat(timespec="seconds")
FILTERS = {"state", "label", "cluster", "name", "created_after", "created_before"}


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    query = case.query
    # A cursor belongs to the listing it came from, an event's id to a stream; links fill in other things of that name.
    query.pop("cursor", None)
    if not re.fullmatch("[0-9]{1,18}-[0-9]{1,9}", case.headers.get("Last-Event-ID", "0-0")):
        del case.headers["Last-Event-ID"]
    # A response that follows a job ends with the job, and takes no limit.
    query.pop("follow", None)
    # A long wait for a job that is held is answered in the end, and too late for us.
    if "wait" in query:
        query["wait"] = "20ms"
    # Each tenant has one project. An operator's jobs are all in one, or no link would find what another request made.
    # A token that works for a cluster is in none.
    if TENANTS or case.operation.path.startswith("/v1/tokens/"):
        query.pop("project", None)
        case.headers.pop("x-jobgate-project", None)
    else:
        if "project" in query:
            query["project"] = "default"
        if "x-jobgate-project" in case.headers:
            case.headers["x-jobgate-project"] = "default"
    # The one cluster that is served from outside.
    if "/claims" in case.operation.path:
        case.path_parameters["name"] = "outside"
    # A command for many jobs names a filter or says that it means all.
    if case.operation.definition.raw.get("operationId", "").endswith("_jobs") and case.method == "POST":
        if not FILTERS & query.keys():
            query["all"] = "true"
    if isinstance(case.body, dict | list):
        case.body = plain(case.body)
    if isinstance(case.body, dict):
        # Only what is configured is a cluster, and only what is served from outside is worked for.
        if case.body.get("cluster") is not None:
            claimed = case.operation.path == "/v1/tokens" or len(str(case.body.get("spec"))) % 2
            case.body["cluster"] = "outside" if claimed else "slow"
        for field in {"run_at", "expires_at"} & case.body.keys():
            case.body[field] = NEXT_YEAR
        # Nothing that is reported was long ago; clocks differ, so it may be still to come.
        if case.body.get("at") is not None:
            case.body["at"] = NEXT_YEAR
        # Neither cluster's engine has options.
        if isinstance(case.body.get("spec"), dict):
            case.body["spec"].pop("engine", None)
        # A token of every project says which one a new token opens.
        # A tenant's opens its own, and may name no other.
        if case.operation.path == "/v1/tokens" and TENANTS:
            case.body.pop("project", None)
        elif case.operation.path == "/v1/tokens" and case.body.get("cluster") is None:
            if case.body.get("project") is None:
                case.body["project"] = "default"


def plain(value):
    """JSON Schema calls 1.0 an integer; here a whole number has no point, and a field that has one is refused."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return int(value) if whole else value
