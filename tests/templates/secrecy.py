"""Where secrets could leave: parameters that are shown, and what AWS does with a request that holds the passkey."""

from __future__ import annotations

import re

from model import Finding

FUNCTION = "AWS::Serverless::Function"
RULE = "AWS::Events::Rule"
# The function whose requests hold a secret. Lambda's record of one that failed, like a dead letter, is the whole request.
HOLDS_THE_PASSKEY = "RestoreTrigger"
# All of that record that may go on.
WITHOUT_THE_REQUEST = {"$.detail.requestContext.condition", "$.detail.requestContext.requestId", "$.detail.responsePayload.errorType"}


def the_passkey_goes_nowhere(project):
    """A failed request goes to a bus that keeps nothing, and from there no part of it goes on that could hold the passkey."""
    for path, name, function in project.resources(FUNCTION):
        if name != HOLDS_THE_PASSKEY:
            continue
        where, properties = f"{path} {name}", function["Properties"]
        if "DeadLetterQueue" in properties:
            yield Finding("passkey", where, "DeadLetterQueue would keep the passkey of a failed request")
        for kind, destination in properties.get("EventInvokeConfig", {}).get("DestinationConfig", {}).items():
            bus = project.resolve(path, destination.get("Destination"))
            if not bus or project.templates[bus[0]]["Resources"][bus[1]]["Type"] != "AWS::Events::EventBus":
                yield Finding("passkey", where, f"{kind} hands the request with its passkey to what keeps or mails it")
            else:
                yield from _bus_keeps_it(project, bus)


def _bus_keeps_it(project, bus):
    for path, name, _ in project.resources("AWS::Events::Archive"):
        yield Finding("passkey", f"{path} {name}", "may keep requests with their passkeys")
    told = False
    for path, name, rule in project.resources(RULE):
        properties = rule["Properties"]
        if project.resolve(path, properties.get("EventBusName")) != bus:
            continue
        for target in properties["Targets"]:
            paths = set(target.get("InputTransformer", {}).get("InputPathsMap", {}).values())
            template = target.get("InputTransformer", {}).get("InputTemplate", {}).get("Fn::Sub", "<aws.events.event>")
            if not paths or paths - WITHOUT_THE_REQUEST or "<aws.events.event" in template or "DeadLetterConfig" in target:
                yield Finding("passkey", f"{path} {name}", f"target {target['Id']} is handed more than {sorted(WITHOUT_THE_REQUEST)}")
            topic = project.resolve(path, target["Arn"])
            told |= bool(topic) and project.templates[topic[0]]["Resources"][topic[1]]["Type"] == "AWS::SNS::Topic"
    if not told:
        yield Finding("on-failure", f"{bus[0]} {bus[1]}", "no rule of the bus tells the topic: a failed request would vanish")


def secrets_stay_hidden(project):
    for path, template in project.templates.items():
        for name, parameter in template.get("Parameters", {}).items():
            if re.search(r"(Url|Password|Passkey|Token)$", name) and name != "S3EndpointUrl" and parameter.get("NoEcho") is not True:
                yield Finding("no-echo", f"{path} {name}", "may hold a secret and is not NoEcho")


RULES = [the_passkey_goes_nowhere, secrets_stay_hidden]
