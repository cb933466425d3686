//! A function for the emulator's tests: it does what the event's `do` says.

use std::time::Duration;

use lambda_runtime::{Error, LambdaEvent, run, service_fn};
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<(), Error> {
    match std::env::var("INIT").as_deref() {
        Ok("exit") => std::process::exit(3),
        Ok("slow") => tokio::time::sleep(Duration::from_millis(300)).await,
        _ => println!("cold start"),
    }
    run(service_fn(handle)).await
}

async fn handle(event: LambdaEvent<Value>) -> Result<Value, Error> {
    let (event, context) = event.into_parts();
    match event["do"].as_str().unwrap_or("echo") {
        "echo" => Ok(event),
        "context" => Ok(json!({
            "request_id": context.request_id,
            "deadline_ms": context.deadline,
            "arn": context.invoked_function_arn,
            "pid": std::process::id(),
            "environment": std::env::vars().collect::<std::collections::BTreeMap<_, _>>(),
        })),
        "print" => {
            println!("to stdout");
            eprintln!("to stderr");
            Ok(json!({}))
        }
        "fail" => Err("asked to fail".into()),
        "panic" => panic!("asked to panic"),
        "exit" => std::process::exit(event["code"].as_i64().and_then(|code| code.try_into().ok()).unwrap_or(1)),
        "sleep" => {
            tokio::time::sleep(Duration::from_millis(event["ms"].as_u64().unwrap_or(0))).await;
            Ok(json!({ "pid": std::process::id() }))
        }
        "hang" => std::future::pending().await,
        "big" => Ok("x".repeat(7_000_000).into()),
        "grow" => {
            let mut kept = Vec::new();
            loop {
                kept.push(vec![1_u8; 8 << 20]);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        other => Err(format!("cannot do {other}").into()),
    }
}
