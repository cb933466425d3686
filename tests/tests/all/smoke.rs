//! scripts/smoke.sh, which is for a deployed stack, on the local one: it proves what it says, and fails where something is wrong.

use std::path::Path;
use std::process::{Command, Output};

use holdfast_local::stack::{DATABASE, Stack, StackOptions};
use serde_json::{Value, json};

fn smoke(stack: &Stack, outputs: &Value, arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let about = &stack.description;
    Command::new(root.join("scripts/smoke.sh"))
        .args(arguments)
        .env("PATH", format!("{}:{path}", root.join(".venv/bin").display()))
        .env("SMOKE_OUTPUTS", outputs.to_string())
        .env("AWS_ENDPOINT_URL_LAMBDA", &about.lambda)
        .env("AWS_ENDPOINT_URL_S3", &about.s3)
        .env("AWS_ACCESS_KEY_ID", &about.access_key)
        .env("AWS_SECRET_ACCESS_KEY", &about.secret_key)
        .env("AWS_DEFAULT_REGION", &about.region)
        .output()
        .unwrap()
}

fn told(output: &Output) -> (Option<i32>, String) {
    let text = [output.stdout.as_slice(), &output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smoke_script_proves_a_stack_and_fails_on_a_broken_one() {
    let stack = Stack::start(StackOptions::default()).await.unwrap();
    let sql = "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, 500) i";
    stack.postgres.as_ref().unwrap().execute(DATABASE, sql).await.unwrap();
    // An export that cannot be restored lies there first, and is nobody's latest backup.
    let snapshot_export = async |payload: Value| stack.lambda.invoke("snapshot-export", payload).await.unwrap().payload;
    assert_eq!(snapshot_export(json!({})).await["status"], "exporting");
    let mut polled = Value::Null;
    for _ in 0..3 {
        polled = snapshot_export(json!({"mode": "poll"})).await;
    }
    assert_eq!(polled["exports"][0]["status"], "complete", "{polled:#}");
    let mut outputs = json!({
        "ScheduledExport": "scheduled-export", "RestoreTrigger": "restore-trigger", "Retention": "retention",
        "Bucket": stack.description.bucket, "KeyPrefix": "",
    });
    let (code, text) = told(&smoke(&stack, &outputs, &["local"]));
    assert_eq!(code, Some(0), "{text}");
    let proofs = ["500 rows", "listed and verified", "equal to the backup", "is possible", "retention keeps it"];
    for proof in proofs {
        assert!(text.lines().any(|line| line.starts_with("proved:") && line.contains(proof)), "{proof}: {text}");
    }

    // A function that fails is found, with its code, after what has been proved.
    outputs["RestoreTrigger"] = json!("retention");
    let (code, text) = told(&smoke(&stack, &outputs, &["local"]));
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("FAILED: retention") && text.contains("request-unknown-fields"), "{text}");
    assert!(!text.contains("equal to the backup"), "{text}");

    outputs["Bucket"] = json!("");
    let (code, text) = told(&smoke(&stack, &outputs, &["local"]));
    assert!(code == Some(1) && text.contains("lacks one of the outputs") && !text.contains("proved"), "{text}");
    let (code, text) = told(&smoke(&stack, &outputs, &[]));
    assert!(code == Some(2) && text.contains("smoke.sh STACK"), "{text}");
}
