//! The local stack: an S3 server, AWS Lambda's interfaces, Secrets Manager and PostgreSQL, for the demo and for the tests.

pub mod lambda;
mod orphans;
pub mod postgres;
pub mod proxy;
pub mod rds;
pub mod s3;
pub mod sample;
pub mod secrets;
pub mod stack;
