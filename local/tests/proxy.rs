//! The fault proxy in front of a server that sends zeros and echoes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use holdfast_local::proxy::{Proxy, ProxyOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Answers a number with so many zeros.
async fn zeros() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                while let Ok(count) = stream.read_u32().await {
                    if stream.write_all(&vec![0; count as usize]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

async fn ask(stream: &mut TcpStream, count: u32) -> std::io::Result<usize> {
    stream.write_u32(count).await?;
    stream.read_exact(&mut vec![0; count as usize]).await
}

#[tokio::test]
async fn bytes_pass_at_the_set_rate_and_after_the_set_latency() {
    let options =
        ProxyOptions { bytes_per_second_per_connection: Some(10_000_000), latency: Some(Duration::from_millis(50)) };
    let proxy = Proxy::start(zeros().await, options).await.unwrap();
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    let began = Instant::now();
    ask(&mut stream, 1).await.unwrap();
    assert!((100..200).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    let began = Instant::now();
    ask(&mut stream, 5_000_000).await.unwrap();
    assert!((550..900).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    assert_eq!((proxy.connections(), proxy.bytes_to_client()), (1, 5_000_001));
}

#[tokio::test]
async fn a_cut_is_a_reset_after_so_many_bytes() {
    let proxy = Proxy::start(zeros().await, ProxyOptions::default()).await.unwrap();
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    proxy.cut_after_bytes(1000);
    ask(&mut stream, 1000).await.unwrap();
    assert_eq!(ask(&mut stream, 1).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
    ask(&mut stream, 2000).await.unwrap();

    proxy.cut_always_after_bytes(0);
    for _ in 0..2 {
        let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();
        assert_eq!(ask(&mut stream, 1).await.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
    proxy.heal();
    ask(&mut stream, 1).await.unwrap();
    proxy.cut_all();
    assert_eq!(stream.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_refusal_and_a_silence_end_when_told() {
    let proxy = Proxy::start(zeros().await, ProxyOptions::default()).await.unwrap();
    let mut open = TcpStream::connect(proxy.addr()).await.unwrap();
    ask(&mut open, 1).await.unwrap();
    proxy.refuse(true);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(TcpStream::connect(proxy.addr()).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    ask(&mut open, 1).await.unwrap();
    proxy.refuse(false);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut stream = TcpStream::connect(proxy.addr()).await.unwrap();

    proxy.blackhole(true);
    let waiting = ask(&mut stream, 1);
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut waiting).await.is_err());
    proxy.blackhole(false);
    waiting.await.unwrap();
}
