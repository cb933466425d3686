#!/usr/bin/env bash
# Proves a deployed stack: takes a backup, finds it in the bucket, restores it in a drill, plans a restore, and asks retention what
# it would keep. Changes nothing else; the backup has the purpose `testing`, so that it expires after days.
#
#   scripts/smoke.sh STACK
#
# Needs the AWS CLI (1 or 2), jq, and the rights to read the stack and the bucket and to invoke the functions. For another place than
# AWS the CLI's own AWS_ENDPOINT_URL_… hold, and SMOKE_OUTPUTS takes the stack's outputs as one JSON object.
set -euo pipefail

usage() { sed -n '2,/^set -euo/p' "${BASH_SOURCE[0]}" | sed '$d; s/^# \{0,1\}//'; }
fail() { echo "FAILED: $*" >&2; exit 1; }
proved() { echo "proved: $*"; }

case ${1:-} in
    -h | --help) usage; exit 0 ;;
    '' | -*) usage >&2; exit 2 ;;
esac
[ $# -eq 1 ] || { usage >&2; exit 2; }
stack=$1
for tool in aws jq; do
    command -v "$tool" >/dev/null || fail "$tool is not installed"
done

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Version 2 takes a payload for base64 unless told otherwise; version 1 does not know the option.
version=$(aws --version 2>&1)
raw_payload=()
case $version in aws-cli/1.*) ;; *) raw_payload=(--cli-binary-format raw-in-base64-out) ;; esac

outputs=${SMOKE_OUTPUTS:-}
if [ -z "$outputs" ]; then
    outputs=$(aws cloudformation describe-stacks --stack-name "$stack" --query 'Stacks[0].Outputs' --output json |
        jq 'map({(.OutputKey): .OutputValue}) | add') || fail "the stack $stack cannot be described"
fi

# output NAME: of the stack; empty where it has none.
output() { jq -r --arg name "$1" '.[$name] // ""' <<<"$outputs"; }

# invoke FUNCTION PAYLOAD FILE: a function error is a failure, with its code.
invoke() {
    local meta
    meta=$(aws lambda invoke --function-name "$1" --payload "$2" "${raw_payload[@]}" --cli-read-timeout 920 --output json "$3") ||
        fail "$1 cannot be invoked"
    if [ "$(jq -r '.FunctionError // ""' <<<"$meta")" != "" ]; then
        fail "$1 $2: $(jq -r '"\(.errorType): \(.errorMessage)"' "$3")"
    fi
}

# holds FILE FILTER WHAT: a jq filter that has to be true of a JSON file.
holds() { jq -e "${@:4}" "$2" "$1" >/dev/null || fail "$3: $(jq -c . "$1" | cut -c1-2000)"; }

export_function=$(output ScheduledExport)
restore_function=$(output RestoreTrigger)
retention_function=$(output Retention)
bucket=$(output Bucket)
prefix=$(output KeyPrefix)
for value in "$export_function" "$restore_function" "$retention_function" "$bucket"; do
    [ -n "$value" ] || fail "the stack $stack lacks one of the outputs ScheduledExport, RestoreTrigger, Retention, Bucket"
done

echo "export: $export_function"
invoke "$export_function" '{"purpose":"testing","notes":"smoke test","requested_by":"smoke.sh"}' "$scratch/receipt.json"
holds "$scratch/receipt.json" '.status == "complete" and .duplicate == false' "the export has made no backup of its own"
id=$(jq -r .id "$scratch/receipt.json")
key=$(jq -r .artifacts.dump.key "$scratch/receipt.json")
proved "a backup, $id: $(jq -r '"\(.tables) tables, \(.rows) rows, \(.artifacts.dump.size_bytes) bytes in \(.durations_seconds.total) s"' "$scratch/receipt.json")"

day=${id:0:4}-${id:4:2}-${id:6:2}
manifest_key=${prefix}postgres-exports/metadata/$day/$id.json
aws s3api list-objects-v2 --bucket "$bucket" --prefix "${prefix}postgres-exports/metadata/$day/" --output json >"$scratch/listing.json" ||
    fail "the bucket $bucket cannot be listed"
holds "$scratch/listing.json" '[.Contents[].Key] | index($key) != null' "the manifest is not listed" --arg key "$manifest_key"
aws s3api get-object --bucket "$bucket" --key "$manifest_key" "$scratch/manifest.json" >/dev/null || fail "the manifest cannot be read"
holds "$scratch/manifest.json" '.timestamp == $id and .state == "complete" and .verified != null' "the manifest does not say complete and verified" --arg id "$id"
aws s3api head-object --bucket "$bucket" --key "$key" --output json >"$scratch/dump.json" || fail "the dump is not where the manifest says"
holds "$scratch/dump.json" '.ContentLength == ($size | tonumber)' "the dump is not as long as the manifest says" \
    --arg size "$(jq -r .artifacts.dump.size_bytes "$scratch/manifest.json")"
aws s3api get-object --bucket "$bucket" --key "$key" --range bytes=0-4 "$scratch/magic" >/dev/null || fail "the dump cannot be read"
[ "$(cat "$scratch/magic")" = PGDMP ] || fail "the dump does not begin as a pg_dump archive does"
proved "it is listed and verified, and its dump lies in $(jq -r '.StorageClass // "STANDARD"' "$scratch/dump.json"), encrypted with $(jq -r '.ServerSideEncryption // "nothing"' "$scratch/dump.json"), a pg_dump archive of the length the manifest says"

echo "drill: $restore_function"
invoke "$restore_function" "{\"mode\":\"verify\",\"backup\":\"$id\",\"requested_by\":\"smoke.sh\"}" "$scratch/drill.json"
aws s3api get-object --bucket "$bucket" --key "$manifest_key" "$scratch/manifest.json" >/dev/null || fail "the manifest cannot be read again"
holds "$scratch/manifest.json" '.verified.by == "restore-drill"' "the drill's result is not in the manifest"
proved "restored into a scratch database and equal to the backup, at $(jq -r .verified.at "$scratch/manifest.json")"

echo "plan: $restore_function"
invoke "$restore_function" "{\"mode\":\"plan\",\"backup\":\"$id\",\"requested_by\":\"smoke.sh\"}" "$scratch/plan.json"
holds "$scratch/plan.json" '.status == "planned" and .backup.id == $id and (.steps | length > 0)' "there is no plan" --arg id "$id"
# A plan carries no passkey; whatever else is against a restore is a fault of the deployment.
holds "$scratch/plan.json" '[.refusals[].code] - ["restore-passkey-missing"] == []' "a restore of this backup would be refused"
proved "a restore to $(jq -r '.restore.database // .restore.target // "a new database"' "$scratch/plan.json") is possible: $(jq -r '.steps | join("; ")' "$scratch/plan.json")"

echo "retention: $retention_function"
invoke "$retention_function" '{"dry_run":true}' "$scratch/retention.json"
holds "$scratch/retention.json" '.dry_run == true and ([.plan.keep[].id] | index($id) != null)' "retention would not keep the backup" --arg id "$id"
proved "retention keeps it ($(jq -r --arg id "$id" '.plan.keep[] | select(.id == $id) | .reasons | join(", ")' "$scratch/retention.json")), and would expire $(jq -r '.plan.expire | length' "$scratch/retention.json") others"

echo "not proved here: schedules, alarms, a real restore behind the passkey, and what happens when a run is killed"
