"""Answers that do not fit together, or that no function would take: refused before anything is created."""

from __future__ import annotations

import re

from model import ROOT, Finding
from render import Template

IAM = {"DatabaseAuth": "iam", "DatabaseHost": "h", "DatabaseUser": "backup", "DatabaseResourceId": "db-A"}
SECRET = {"DatabaseAuth": "secret", "DatabaseSecretArn": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:s"}
URL = {"DatabaseAuth": "url", "DatabaseUrl": "postgres://h/d"}
VPC = {"VpcSubnetIds": "subnet-1,subnet-2", "VpcSecurityGroupIds": "sg-1"}
# What `sam deploy --guided` is told for parameters that it does not show.
NONE = {"DatabaseUrl": "none", "RestoreDatabaseUrl": "none"}
ARN, KEY = "arn:aws:s3:::copies", "arn:aws:kms:eu-central-1:123456789012:key/k"
# Parameters, and a word of why they are refused; None where they are taken.
COMBINATIONS = [
    (IAM, None),
    ({**IAM, **NONE}, None),
    ({**SECRET, **NONE}, None),
    (URL, None),
    ({**URL, "RestoreDatabaseUrl": "none"}, None),
    ({**URL, "RestoreDatabaseUrl": "postgres://r@h/d"}, None),
    ({**URL, **NONE}, "DatabaseUrl must be given"),
    ({**URL, "DatabaseUrl": ""}, "DatabaseUrl must be given"),
    ({**IAM, "DatabaseHost": ""}, "DatabaseHost must be given"),
    ({**SECRET, "DatabaseSecretArn": ""}, "DatabaseSecretArn must be given"),
    ({**IAM, "RestoreDatabaseUrl": "postgres://r@h/d"}, "RestoreDatabaseUrl is for"),
    ({**IAM, **VPC}, None),
    ({**IAM, "VpcSubnetIds": "subnet-1"}, "VpcSecurityGroupIds"),
    ({**IAM, "VpcSecurityGroupIds": "sg-1"}, "VpcSubnetIds"),
    ({**IAM, **VPC, "VpcRouteTableIds": "rtb-1", "VpcId": "vpc-1", "VpcInterfaceEndpoints": "true"}, None),
    ({**IAM, **VPC, "VpcRouteTableIds": "rtb-1"}, "VpcId"),
    ({**IAM, "VpcId": "vpc-1", "VpcRouteTableIds": "rtb-1"}, "VpcSubnetIds"),
    ({**IAM, **VPC, "VpcInterfaceEndpoints": "true"}, "VpcId"),
    ({**IAM, "VpcId": "vpc-1", "VpcInterfaceEndpoints": "true"}, "VpcSubnetIds"),
    ({**IAM, "PruneRdsSnapshots": "true", "RdsSources": "shop"}, None),
    ({**IAM, "PruneRdsSnapshots": "true"}, "RdsSources"),
    ({**IAM, "SnapshotExportKmsKeyArn": KEY}, "RdsSources"),
    ({**IAM, "ReplicaBucketArn": ARN, "KmsKeyArn": KEY}, "ReplicaKmsKeyArn"),
    ({**IAM, "BucketName": "a-b", "ExistingBucketName": "c-d"}, "one of them"),
    ({**IAM, "S3EndpointUrl": "https://s3.example.com"}, "ExistingBucketName"),
]
# A parameter, what it takes, and what it does not.
VALUES = {
    "SweepAfterHours": (["", "24", "99", "100", "8760"], ["0", "23", "8761", "12000", "24h"]),
    "SnapshotNamePrefix": (["manual-export-", "a-"], ["Manual-", "manual--export-", "manual", "-a-", "a" * 48 + "-"]),
    "RetentionPolicy": (["", '{"rules":[{"keep_last":30}]}', '{\n "rules": [{"keep_last": 30}]\n}'], ["{", '{"rules"', "{}"]),
    "VpcSubnetIds": (["", "subnet-0a1", "subnet-0a1,subnet-2", "subnet-0a1, subnet-2"], ["subnet", "sg-1", "subnet-1;subnet-2", "subnet-1,"]),
    "VpcSecurityGroupIds": (["", "sg-1,sg-2"], ["subnet-1"]),
    "VpcRouteTableIds": (["", "rtb-1"], ["vpc-1"]),
}


def refusals(project, parameters):
    """The AssertDescriptions that CloudFormation would answer with."""
    root = Template(project.templates[ROOT], parameters)
    return [
        assertion["AssertDescription"]
        for rule in root.template.get("Rules", {}).values()
        if root.value(rule.get("RuleCondition", True))
        for assertion in rule["Assertions"]
        if not root.value(assertion["Assert"])
    ]


def takes(parameter, value):
    fits = value in parameter.get("AllowedValues", [value]) and len(value) <= parameter.get("MaxLength", 4096)
    return fits and bool(re.fullmatch(parameter.get("AllowedPattern", ".*"), value, re.DOTALL))


def wrong_combinations_are_refused(project):
    for parameters, why in COMBINATIONS:
        told = refusals(project, parameters)
        if (why is None and told) or (why is not None and not any(why in text for text in told)):
            yield Finding("combination", ROOT, f"{parameters}: told {told}, and not {why or 'taken'}")


def values_are_what_the_functions_take(project):
    declared = project.templates[ROOT]["Parameters"]
    for name, (taken, refused) in VALUES.items():
        for value in [*taken, *refused]:
            if takes(declared[name], value) != (value in taken):
                yield Finding("parameter-value", f"{ROOT} {name}", f"{value!r} is {'refused' if value in taken else 'taken'}")


def a_guided_deployment_can_be_answered(project):
    """SAM asks for a parameter that it does not show until it has an answer, so that there has to be one for "not given"."""
    for name, parameter in project.templates[ROOT]["Parameters"].items():
        if parameter.get("NoEcho") and (not takes(parameter, "none") or "none" not in parameter["Description"] or NONE.get(name) != "none"):
            yield Finding("no-answer", f"{ROOT} {name}", "is not shown, and none is no answer to it")


def sam_takes_what_the_guide_says(project):
    """SAM's own questions, answered as the guide says, and SAM's own reading of the policy as the guide quotes it."""
    from click.testing import CliRunner
    from samcli.cli.types import CfnParameterOverridesType
    from samcli.commands.deploy.guided_context import GuidedContext

    declared = project.templates[ROOT]["Parameters"]
    answers = [NONE.get(name, IAM.get(name, "media_tool" if name == "DatabaseName" else "")) for name in declared]
    with CliRunner().isolation(input="\n".join([*answers, ""])):
        given = GuidedContext.prompt_parameters(GuidedContext, declared, {}, "", "")
    problems = refusals(project, {name: answer["Value"] for name, answer in given.items()})

    policy = '{"rules":[{"purposes":["testing"],"keep_within_days":7},{"keep_last":30}]}'
    quoted = re.search(r'^sam deploy .*"(RetentionPolicy=.*)"$', project.deploy_doc, re.MULTILINE)
    words = ["Environment=staging", quoted[1].replace("$(jq -c . policy.json)", policy)] if quoted else []
    read = CfnParameterOverridesType().convert(words, None, None)
    if read != {"Environment": "staging", "RetentionPolicy": policy}:
        problems.append(f"SAM reads {words} as {read}")
    return problems


RULES = [wrong_combinations_are_refused, values_are_what_the_functions_take, a_guided_deployment_can_be_answered]
