//! Programmed failures, each as the AWS SDK meets it.

use std::time::{Duration, Instant};

use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::primitives::ByteStream;

use super::{bench, body, refusal, refused};
use crate::s3::{Fault, FaultAction};

#[tokio::test]
async fn a_status_hits_the_chosen_call_and_only_that() {
    let bench = bench().await;
    let action = FaultAction::Status { status: 503, code: "SlowDown".into() };
    bench.server.store().faults().push(Fault {
        key_contains: Some("dumps/".into()),
        times: 2,
        ..Fault::nth("PutObject", 2, action)
    });
    let put = |key: &str| {
        let body = ByteStream::from(body(200_000, 1));
        bench.client.put_object().bucket("plain").key(key).body(body).send()
    };
    put("dumps/1").await.unwrap();
    put("metadata/1").await.unwrap();
    assert_eq!(refusal(put("dumps/2").await), refused(503, "SlowDown"));
    assert_eq!(refusal(put("dumps/3").await), refused(503, "SlowDown"));
    assert_eq!(bench.server.store().faults().pending(), 0);
    put("dumps/4").await.unwrap();
    assert_eq!(bench.server.store().objects("plain").len(), 3);
}

#[tokio::test]
async fn an_sdk_with_retries_gets_through() {
    let bench = bench().await;
    let config = bench.client.config().to_builder().retry_config(RetryConfig::standard().with_max_attempts(3));
    let patient = aws_sdk_s3::Client::from_conf(config.build());
    let faults = bench.server.store().faults();
    faults.push(Fault::next("PutObject", FaultAction::Status { status: 503, code: "SlowDown".into() }));
    faults.push(Fault::nth("PutObject", 2, FaultAction::ResetBefore));
    patient.put_object().bucket("plain").key("k").body(ByteStream::from_static(b"x")).send().await.unwrap();
    let statuses: Vec<u16> = bench.server.store().requests().iter().map(|request| request.status).collect();
    assert_eq!(statuses, [503, 0, 200]);
}

#[tokio::test]
async fn a_cut_before_loses_the_call_and_a_cut_after_only_the_answer() {
    let bench = bench().await;
    let put =
        |key: &str| bench.client.put_object().bucket("plain").key(key).body(ByteStream::from(body(300_000, 1))).send();
    for (action, key, executed) in [(FaultAction::ResetBefore, "before", 0), (FaultAction::ResetAfter, "after", 1)] {
        bench.server.store().faults().push(Fault::next("PutObject", action));
        let error = put(key).await.unwrap_err();
        assert!(matches!(error, SdkError::DispatchFailure(_) | SdkError::ResponseError(_)), "{error:?}");
        let found = bench.server.store().objects("plain").iter().filter(|object| object.key == key).count();
        assert_eq!(found, executed, "{key}");
    }
}

#[tokio::test]
async fn a_lost_completion_is_complete() {
    let bench = bench().await;
    let upload = bench.begin("k").await;
    let part = bench.part("k", &upload, 1, b"x".to_vec()).await;
    bench.server.store().faults().push(Fault::next("CompleteMultipartUpload", FaultAction::ResetAfter));
    let complete = || bench.complete("k", &upload, vec![part.clone()]).if_none_match("*").send();
    complete().await.unwrap_err();
    assert_eq!(bench.get("plain", "k").await, b"x");
    assert_eq!(refusal(complete().await), refused(404, "NoSuchUpload"));
}

#[tokio::test]
async fn a_completion_fails_inside_a_200() {
    let bench = bench().await;
    let upload = bench.begin("k").await;
    let part = bench.part("k", &upload, 1, b"x".to_vec()).await;
    let action = FaultAction::ErrorIn200 { code: "InternalError".into() };
    bench.server.store().faults().push(Fault::next("CompleteMultipartUpload", action));
    let result = bench.complete("k", &upload, vec![part.clone()]).send().await;
    assert_eq!(refusal(result).1, "InternalError");
    let last = bench.server.store().requests().pop().unwrap();
    assert_eq!((last.operation.as_str(), last.status), ("CompleteMultipartUpload", 200));
    assert!(bench.server.store().objects("plain").is_empty());
    bench.complete("k", &upload, vec![part]).send().await.unwrap();
}

#[tokio::test]
async fn delays_pass_and_hangs_do_not() {
    let bench = bench().await;
    bench.put("plain", "k", b"x").await;
    let wait = Duration::from_millis(200);
    let faults = bench.server.store().faults();
    let get = || bench.client.get_object().bucket("plain").key("k").send();
    faults.push(Fault::next("GetObject", FaultAction::Delay(wait)));
    let started = Instant::now();
    get().await.unwrap();
    assert!(started.elapsed() >= wait);
    faults.push(Fault::next("GetObject", FaultAction::Hang(wait)));
    let started = Instant::now();
    assert!(matches!(get().await, Err(SdkError::DispatchFailure(_))));
    assert!(started.elapsed() >= wait);
}

#[tokio::test]
async fn a_spoiled_body_is_noticed() {
    let bench = bench().await;
    let content = body(500_000, 4);
    bench.put("plain", "k", &content).await;
    let faults = bench.server.store().faults();
    faults.push(Fault { times: 2, ..Fault::next("GetObject", FaultAction::CorruptBody) });
    let got = bench.client.get_object().bucket("plain").key("k").send().await.unwrap();
    assert!(got.body.collect().await.is_err(), "the SDK verifies the checksum");
    let got = bench.client.get_object().bucket("plain").key("k").range("bytes=0-99999").send().await.unwrap();
    let got = got.body.collect().await.unwrap().to_vec();
    let wrong: u32 = got.iter().zip(&content).map(|(a, b)| (a ^ b).count_ones()).sum();
    assert_eq!((got.len(), wrong), (100_000, 1));
    faults.clear();
    faults.push(Fault::next("GetObject", FaultAction::Truncate));
    let got = bench.client.get_object().bucket("plain").key("k").send().await.unwrap();
    assert!(got.body.collect().await.is_err());
}

#[tokio::test]
async fn denied_until_cleared() {
    let bench = bench().await;
    bench.server.store().faults().deny("PutObject");
    let put = || bench.client.put_object().bucket("plain").key("k").body(ByteStream::from(body(400_000, 1))).send();
    for _ in 0..3 {
        assert_eq!(refusal(put().await), refused(403, "AccessDenied"));
    }
    bench.server.store().faults().clear();
    put().await.unwrap();
    assert_eq!(bench.operations().len(), 4);
}
