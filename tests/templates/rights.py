"""Which actions each function's role may hold, as the project's table of rights has them; nothing else may be allowed.

What each does on which objects stands in tests/rights.json, and what it asks of RDS in tests/rds-rights.json; the integration tests
allow the functions no more than these do: a right that a function needs and the template lacks fails there, one that the template has too many fails here.
"""

import json
from pathlib import Path

# What Lambda cannot run a function without, whatever the function does.
LAMBDA_ITSELF = {
    "logs:CreateLogStream",
    "logs:PutLogEvents",
    "xray:PutTraceSegments",
    "xray:PutTelemetryRecords",
    "ec2:CreateNetworkInterface",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSubnets",
    "ec2:DeleteNetworkInterface",
    "ec2:AssignPrivateIpAddresses",
    "ec2:UnassignPrivateIpAddresses",
}

# By function and S3 action, the prefixes: {own} is KEY_PREFIX, {any} the same with any environment in the environment's place; * is the
# bucket, of an action that knows no s3:prefix.
OBJECTS = json.loads((Path(__file__).resolve().parents[1] / "rights.json").read_text())

# By function, its calls of RDS, and what RDS does on its behalf.
RDS = {
    function: set(actions)
    for function, actions in json.loads((Path(__file__).resolve().parents[1] / "rds-rights.json").read_text()).items()
}

_EVERYWHERE = {"kms:GenerateDataKey", "kms:Decrypt", "secretsmanager:GetSecretValue", "sns:Publish"}

# By function, what it may do beside S3.
RIGHTS = {
    "scheduled-export": _EVERYWHERE | {"rds-db:connect"},
    "retention": _EVERYWHERE | {"rds-db:connect"} | RDS["retention"],
    "restore-trigger": _EVERYWHERE | {"rds-db:connect", "lambda:InvokeFunction", "events:PutEvents"} | RDS["restore-trigger"],
    # Aurora's snapshots have calls of their own; the bucket's objects under the export's key are read with kms:Decrypt.
    "snapshot-export": _EVERYWHERE | RDS["snapshot-export"],
}

# What every function's role denies, whoever adds what to it.
DENIED = {"s3:DeleteObjectVersion", "s3:BypassGovernanceRetention"}

# Roles that no function has.
OTHER_ROLES = {
    "SchedulerRole": {"lambda:InvokeFunction", "sqs:SendMessage"},
    "RdsExportWriterRole": {"s3:PutObject*", "s3:GetObject*", "s3:DeleteObject*", "s3:ListBucket", "s3:GetBucketLocation"},
    "ReadersRole": {
        "s3:ListBucket",
        "s3:ListBucketVersions",
        "s3:GetObject",
        "s3:GetObjectVersion",
        "kms:Decrypt",
        "logs:FilterLogEvents",
        "logs:GetLogEvents",
        "logs:DescribeLogStreams",
        "cloudwatch:DescribeAlarms",
        "cloudwatch:GetDashboard",
        "cloudwatch:GetMetricData",
        "cloudwatch:ListMetrics",
    },
    # It cannot replicate deletions.
    "ReplicationRole": {
        "s3:GetReplicationConfiguration",
        "s3:ListBucket",
        "s3:GetObjectVersionForReplication",
        "s3:GetObjectVersionAcl",
        "s3:GetObjectVersionTagging",
        "s3:GetObjectRetention",
        "s3:GetObjectLegalHold",
        "s3:ReplicateObject",
        "s3:ReplicateTags",
        "kms:Decrypt",
        "kms:Encrypt",
    },
}

# Actions that take no resource; everything else has to name one.
WITHOUT_RESOURCE = {
    action for action in LAMBDA_ITSELF | OTHER_ROLES["ReadersRole"] if action.startswith(("xray:", "ec2:", "cloudwatch:"))
}
