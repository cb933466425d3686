//! The Lambda emulator against a real function process, through its Rust interface and over HTTP.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use bytes::Bytes;
use holdfast_local::lambda::{FunctionSpec, InvokeOptions, LambdaError, LambdaOptions, LambdaServer};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

fn echo_function() -> PathBuf {
    env!("CARGO_BIN_EXE_echo-function").into()
}

async fn server(change: impl FnOnce(&mut FunctionSpec)) -> LambdaServer {
    let server = LambdaServer::start(LambdaOptions::default()).await.unwrap();
    let mut spec = FunctionSpec::new("echo", echo_function()).env("GREETING", "hello");
    change(&mut spec);
    server.register(spec);
    server
}

struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: Bytes,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

async fn send(
    server: &LambdaServer,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut request = http::Request::builder().method(method).uri(format!("{}{path}", server.endpoint()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = client.request(request.body(Full::new(body.into())).unwrap()).await.unwrap();
    let (parts, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Answer { status: parts.status.as_u16(), headers: parts.headers, body }
}

#[tokio::test]
async fn a_warm_instance_is_reused_and_sees_what_aws_gives_it() {
    let server = server(|spec| spec.timeout = Duration::from_secs(30)).await;
    let options = InvokeOptions { request_id: Some("my-request".into()), ..InvokeOptions::default() };
    let first = server.invoke_with("echo", json!({"do": "context"}), options).await.unwrap();
    assert_eq!(first.function_error, None);
    assert_eq!(first.payload["request_id"], "my-request");
    assert_eq!(first.payload["arn"], "arn:aws:lambda:us-east-1:123456789012:function:echo");
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let left_ms = first.payload["deadline_ms"].as_u64().unwrap() - now_ms;
    assert!((28_000..=30_000).contains(&left_ms), "{left_ms}");
    let environment = &first.payload["environment"];
    assert_eq!(environment["GREETING"], "hello");
    assert_eq!(environment["AWS_LAMBDA_FUNCTION_NAME"], "echo");
    assert_eq!(environment["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"], "1024");
    assert_eq!(environment["AWS_REGION"], "us-east-1");
    assert_eq!(environment["CARGO_MANIFEST_DIR"], Value::Null, "the caller's environment must not leak");
    assert!(first.log.contains(&"cold start".to_owned()), "{:?}", first.log);
    assert!(first.max_rss_kb > 0);

    let second = server.invoke("echo", json!({"do": "context"})).await.unwrap();
    assert_eq!(second.payload["pid"], first.payload["pid"]);
    assert_ne!(second.request_id, first.request_id);
    assert!(!second.log.contains(&"cold start".to_owned()));
    assert_eq!(server.instances("echo").len(), 1);
}

#[tokio::test]
async fn every_way_to_fail_has_the_payload_aws_gives() {
    let server = server(|_| ()).await;
    let failed = server.invoke("echo", json!({"do": "fail"})).await.unwrap();
    assert_eq!(failed.function_error.as_deref(), Some("Unhandled"));
    assert_eq!(failed.payload["errorMessage"], "asked to fail");
    let panicked = server.invoke("echo", json!({"do": "panic"})).await.unwrap();
    assert!(panicked.is_error() && panicked.payload["errorMessage"].as_str().unwrap().contains("asked to panic"));
    for (code, how) in
        [(1, "Runtime exited with error: exit status 1"), (0, "Runtime exited without providing a reason")]
    {
        let exited = server.invoke("echo", json!({"do": "exit", "code": code})).await.unwrap();
        let message = format!("RequestId: {} Error: {how}", exited.request_id);
        assert_eq!(exited.payload, json!({"errorType": "Runtime.ExitError", "errorMessage": message}));
        assert_eq!(exited.function_error.as_deref(), Some("Unhandled"));
    }
    let big = server.invoke("echo", json!({"do": "big"})).await.unwrap();
    assert_eq!(big.payload["errorType"], "Function.ResponseSizeTooLarge");
    let after = server.invoke("echo", json!({"still": "alive"})).await.unwrap();
    assert_eq!(after.payload, json!({"still": "alive"}));
}

#[tokio::test]
async fn a_timeout_kills_the_process() {
    let server = server(|spec| spec.timeout = Duration::from_secs(1)).await;
    let warm = server.invoke("echo", json!({"do": "sleep"})).await.unwrap();
    let pid = warm.payload["pid"].as_u64().unwrap();
    let hung = server.invoke("echo", json!({"do": "hang"})).await.unwrap();
    let message = format!("RequestId: {} Error: Task timed out after 1.00 seconds", hung.request_id);
    assert_eq!(hung.payload, json!({"errorType": "Sandbox.Timedout", "errorMessage": message}));
    assert!(hung.billed >= Duration::from_secs(1) && hung.billed < Duration::from_secs(2));
    assert!(server.instances("echo").is_empty());
    assert!(!PathBuf::from(format!("/proc/{pid}")).exists());

    let options = InvokeOptions { timeout: Some(Duration::from_millis(200)), ..InvokeOptions::default() };
    let hung = server.invoke_with("echo", json!({"do": "hang"}), options).await.unwrap();
    assert!(hung.payload["errorMessage"].as_str().unwrap().ends_with("timed out after 0.20 seconds"));
}

#[tokio::test]
async fn an_instance_past_its_memory_is_killed() {
    let server = server(|spec| spec.memory_mb = 128).await;
    let grown = server.invoke("echo", json!({"do": "grow"})).await.unwrap();
    assert!(grown.payload["errorMessage"].as_str().unwrap().ends_with("signal: killed"), "{:?}", grown.payload);
    assert!(grown.max_rss_kb > 128 * 1024);
}

#[tokio::test]
async fn a_function_that_dies_before_its_first_event_is_an_error() {
    let dying = server(|spec| drop(spec.environment.insert("INIT".into(), "exit".into()))).await;
    let outcome = dying.invoke("echo", json!({})).await.unwrap();
    assert!(outcome.payload["errorMessage"].as_str().unwrap().ends_with("exit status 3"), "{:?}", outcome.payload);
    let missing = server(|spec| spec.binary = "/nowhere/bootstrap".into()).await;
    assert!(matches!(missing.invoke("echo", json!({})).await, Err(LambdaError::Spawn { .. })));
}

#[tokio::test]
async fn kill_instances_ends_a_running_invocation() {
    let server = server(|_| ()).await;
    let (outcome, ()) = tokio::join!(server.invoke("echo", json!({"do": "hang"})), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.kill_instances("echo");
    });
    let message = outcome.unwrap().payload["errorMessage"].as_str().unwrap().to_owned();
    assert!(message.ends_with("Runtime exited with error: signal: killed"), "{message}");
    // A warm instance that was killed while idle is not chosen.
    server.invoke("echo", json!({})).await.unwrap();
    server.kill_instances("echo");
    assert!(!server.invoke("echo", json!({})).await.unwrap().is_error());
}

#[tokio::test]
async fn invocations_run_side_by_side_up_to_the_reserved_concurrency() {
    let server = server(|spec| spec.max_concurrency = Some(2)).await;
    let sleep = || server.invoke("echo", json!({"do": "sleep", "ms": 300}));
    let (first, second) = tokio::join!(sleep(), sleep());
    assert_ne!(first.unwrap().payload["pid"], second.unwrap().payload["pid"]);
    let started = Instant::now();
    let (first, second, third) = tokio::join!(sleep(), sleep(), sleep());
    assert!(first.is_ok() && second.is_ok());
    assert!(matches!(third, Err(LambdaError::TooManyRequests { limit: 2, .. })));
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(server.instances("echo").len(), 2);
}

#[tokio::test]
async fn a_failed_event_is_delivered_again_under_the_same_id() {
    let server = server(|_| ()).await;
    let options = InvokeOptions { asynchronous: true, ..InvokeOptions::default() };
    let accepted = server.invoke_with("echo", json!({"do": "fail"}), options).await.unwrap();
    server.events_settled().await;
    let failures = server.async_failures();
    assert_eq!(failures.len(), 1);
    assert_eq!((failures[0].attempts, &failures[0].request_id), (3, &accepted.request_id));
    assert_eq!(failures[0].response["errorMessage"], "asked to fail");
}

#[tokio::test]
async fn the_invoke_api_answers_as_aws_does() {
    let server = server(|spec| spec.max_concurrency = Some(1)).await;
    let path = "/2015-03-31/functions/echo/invocations";

    let tail = send(&server, "POST", path, &[("X-Amz-Log-Type", "Tail")], r#"{"do":"print"}"#).await;
    assert_eq!((tail.status, tail.header("x-amz-executed-version")), (200, Some("$LATEST")));
    assert_eq!(tail.header("x-amz-function-error"), None);
    let log = base64::engine::general_purpose::STANDARD.decode(tail.header("x-amz-log-result").unwrap()).unwrap();
    let log = String::from_utf8(log).unwrap();
    for line in ["START RequestId: ", "to stdout\n", "to stderr\n", "END RequestId: ", "Billed Duration: "] {
        assert!(log.contains(line), "{line} in {log}");
    }
    assert_eq!(server.take_logs("echo").iter().filter(|line| *line == "to stdout").count(), 1);
    assert!(server.logs("echo").is_empty());

    let failed = send(&server, "POST", path, &[], r#"{"do":"fail"}"#).await;
    assert_eq!((failed.status, failed.header("x-amz-function-error")), (200, Some("Unhandled")));

    let by_arn = "/2015-03-31/functions/arn%3Aaws%3Alambda%3Aus-east-1%3A123456789012%3Afunction%3Aecho/invocations";
    assert_eq!(send(&server, "POST", by_arn, &[], "").await.json(), json!({}));
    assert_eq!(send(&server, "POST", "/2015-03-31/functions/echo%3Alive/invocations", &[], "1").await.json(), json!(1));

    let event = send(&server, "POST", path, &[("X-Amz-Invocation-Type", "Event")], r#"{"do":"fail"}"#).await;
    assert_eq!((event.status, event.body.len()), (202, 0));
    let request_id = event.header("x-amzn-requestid").unwrap().to_owned();
    server.events_settled().await;
    assert_eq!(server.async_failures()[0].request_id, request_id);
    assert_eq!(send(&server, "POST", path, &[("X-Amz-Invocation-Type", "DryRun")], "{}").await.status, 204);

    let missing = send(&server, "POST", "/2015-03-31/functions/nobody/invocations", &[], "{}").await;
    assert_eq!((missing.status, missing.header("x-amzn-errortype")), (404, Some("ResourceNotFoundException")));
    assert!(missing.json()["Message"].as_str().unwrap().ends_with(":function:nobody"));
    let garbage = send(&server, "POST", path, &[], "{not json").await;
    assert_eq!((garbage.status, garbage.header("x-amzn-errortype")), (400, Some("InvalidRequestContentException")));
    let huge = send(&server, "POST", path, &[], format!("\"{}\"", "x".repeat(7_000_000))).await;
    assert_eq!((huge.status, huge.header("x-amzn-errortype")), (413, Some("RequestTooLargeException")));

    let sleep = r#"{"do":"sleep","ms":400}"#;
    let (busy, throttled) = tokio::join!(send(&server, "POST", path, &[], sleep), async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        send(&server, "POST", path, &[], sleep).await
    });
    assert_eq!((busy.status, throttled.status), (200, 429));
    assert_eq!(throttled.header("x-amzn-errortype"), Some("TooManyRequestsException"));

    let list = send(&server, "GET", "/2015-03-31/functions", &[], "").await.json();
    assert_eq!(list["Functions"][0]["FunctionName"], "echo");
    let one = send(&server, "GET", "/2015-03-31/functions/echo", &[], "").await.json();
    assert_eq!(one["Configuration"]["MemorySize"], 1024);
}
