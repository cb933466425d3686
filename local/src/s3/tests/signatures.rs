//! Signatures: keys, payloads, presigned URLs.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::primitives::ByteStream;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;

use super::{bench, body, client, refusal, refused};

#[tokio::test]
async fn unknown_keys_and_wrong_secrets_are_told_apart() {
    let bench = bench().await;
    for (key, secret, code) in
        [("holdfast", "wrong", "SignatureDoesNotMatch"), ("nobody", "holdfast-secret", "InvalidAccessKeyId")]
    {
        let put = client(&bench.server, key, secret).put_object().bucket("plain").key("k");
        let put = put.body(ByteStream::from(body(300_000, 1))).send().await;
        assert_eq!(refusal(put), refused(403, code));
    }
}

#[tokio::test]
async fn an_unsigned_payload_is_accepted() {
    let bench = bench().await;
    let content = body(300_000, 1);
    let put = bench.client.put_object().bucket("plain").key("k").body(ByteStream::from(content.clone()));
    put.customize().disable_payload_signing().send().await.unwrap();
    assert!(bench.get("plain", "k").await == content);
}

/// Status, Content-Disposition and body of a bare GET.
async fn fetch(url: &str) -> (u16, String, Vec<u8>) {
    let uri: http::Uri = url.parse().unwrap();
    let stream = tokio::net::TcpStream::connect(uri.authority().unwrap().as_str()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(uri.path_and_query().unwrap().as_str());
    let request = request.header("host", uri.authority().unwrap().as_str()).body(Empty::<bytes::Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let disposition = response.headers().get("content-disposition");
    let disposition = disposition.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    (status, disposition, response.into_body().collect().await.unwrap().to_bytes().to_vec())
}

#[tokio::test]
async fn a_presigned_url_works_until_it_expires_and_only_as_signed() {
    let bench = bench().await;
    bench.put("plain", "dumps/a b.dump", b"data").await;
    let presign = |config: PresigningConfig| {
        let get = bench.client.get_object().bucket("plain").key("dumps/a b.dump");
        get.response_content_disposition("attachment; filename=\"friendly.dump\"").presigned(config)
    };
    let url = presign(PresigningConfig::expires_in(Duration::from_secs(60)).unwrap()).await.unwrap();
    let (status, disposition, content) = fetch(url.uri()).await;
    assert_eq!((status, disposition.as_str()), (200, "attachment; filename=\"friendly.dump\""));
    assert_eq!(content, b"data");
    let (status, _, error) = fetch(&url.uri().replace("friendly", "evil")).await;
    assert_eq!(status, 403);
    assert!(String::from_utf8_lossy(&error).contains("<Code>SignatureDoesNotMatch</Code>"));
    let past = PresigningConfig::builder().start_time(SystemTime::now() - Duration::from_secs(120));
    let expired = presign(past.expires_in(Duration::from_secs(60)).build().unwrap()).await.unwrap();
    let (status, _, error) = fetch(expired.uri()).await;
    assert_eq!(status, 403);
    assert!(String::from_utf8_lossy(&error).contains("Request has expired"));
    let unsigned = url.uri().split('?').next().unwrap();
    assert_eq!(fetch(unsigned).await.0, 403);
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn refusals_are_not_logged_as_trouble() {
    let lines = Lines::default();
    let writer = lines.clone();
    let log =
        tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).with_writer(move || writer.clone()).finish();
    let _guard = tracing::subscriber::set_default(log);
    tracing::warn!("seen");
    let bench = bench().await;
    let get = bench.client.get_object().bucket("plain").key("none").send().await;
    assert_eq!(refusal(get), refused(404, "NoSuchKey"));
    let wrong = client(&bench.server, "holdfast", "wrong").head_bucket().bucket("plain").send().await;
    assert_eq!(refusal(wrong).0, 403);
    bench.server.store().faults().deny("GetObject");
    let get = bench.client.get_object().bucket("plain").key("none").send().await;
    assert_eq!(refusal(get), refused(403, "AccessDenied"));
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
}
