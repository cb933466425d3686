//! One block, or some pieces of one, into the session: decoded, digested, and counted against what the server took.

use std::ops::Range;

use bytes::Bytes;
use holdfast_shared::archive::decode::PieceDecoder;
use holdfast_shared::archive::lexer::Dialect;
use holdfast_shared::archive::rows::RowReader;
use holdfast_shared::domain::TableDigest;
use holdfast_shared::domain::fingerprint::RowHasher;
use holdfast_shared::fault::Fault;
use holdfast_shared::postgres::copy::RawSession;

use super::Work;
use crate::engine::inserts::Inserts;
use crate::engine::intake::{Event, Intake, IntakeError, Run};
use crate::engine::objects::{ObjectBatch, object_digest};
use crate::engine::rows::Rows;
use crate::engine::stopped::{Stopped, load_fault};

impl Work {
    /// One block's rows.
    pub(super) async fn table(
        &self,
        session: &mut RawSession,
        intake: &mut Intake,
        block: usize,
        alone: bool,
    ) -> Result<(), Fault> {
        let name = self.backup.name(block);
        let to = self.destination(session, block, alone).await?;
        let mut copy = Rows::begin(session, to).await.map_err(|error| load_fault(&error, &name))?;
        let mut read = async |copy: &mut Rows<'_>| -> Result<TableDigest, Stopped> {
            let mut decoder = self.decoder()?;
            let mut rows = RowReader::table();
            while let Some(stored) = intake.stream().await? {
                let mut stored: &[u8] = &stored;
                while let Some(text) = decoder.decode(&mut stored).map_err(IntakeError::from)? {
                    copy.pass_on(&mut rows, text).await?;
                }
            }
            decoder.finish().map_err(IntakeError::from)?;
            Ok(rows.finish().map_err(IntakeError::from)?)
        };
        let digest = read(&mut copy).await.map_err(|stopped| stopped.fault(&name))?;
        all_taken(copy, &digest, &name).await?;
        // Before an index is built on it.
        if let Some(expected) = self.backup.expected(block).filter(|expected| *expected != digest) {
            return Err(IntakeError::OtherRows { expected: expected.rows, found: digest.rows }.fault(&name));
        }
        self.learn(block, &digest);
        Ok(())
    }

    /// Some pieces of one block.
    pub(super) async fn pieces(
        &self,
        session: &mut RawSession,
        mut run: Run,
        block: usize,
        pieces: Range<usize>,
    ) -> Result<(), Fault> {
        let name = self.backup.name(block);
        let pieces = self.backup.tables[block].as_ref().and_then(|table| table.pieces.get(pieces)).unwrap_or_default();
        let compression = self.backup.archive.toc.header.compression;
        let to = self.destination(session, block, false).await?;
        let mut copy = Rows::begin(session, to).await.map_err(|error| load_fault(&error, &name))?;
        let mut read = async |copy: &mut Rows<'_>| -> Result<TableDigest, Stopped> {
            let mut whole = TableDigest::default();
            for piece in pieces {
                let mut decoder = PieceDecoder::new(compression, *piece).map_err(IntakeError::from)?;
                let mut rows = RowReader::piece();
                let mut left = piece.length;
                while left > 0 {
                    let stored: Bytes = run.some(left).await?;
                    left -= stored.len() as u64;
                    let mut stored: &[u8] = &stored;
                    while let Some(text) = decoder.decode(&mut stored).map_err(IntakeError::from)? {
                        copy.pass_on(&mut rows, text).await?;
                    }
                }
                decoder.finish().map_err(IntakeError::from)?;
                let digest = rows.finish().map_err(IntakeError::from)?;
                if digest.rows != piece.rows {
                    return Err(IntakeError::RowCount { expected: piece.rows, found: digest.rows }.into());
                }
                whole.merge(&digest);
            }
            Ok(whole)
        };
        let digest = read(&mut copy).await.map_err(|stopped| stopped.fault(&name))?;
        all_taken(copy, &digest, &name).await?;
        self.learn(block, &digest);
        Ok(())
    }

    /// One block of `INSERT` statements, as `pg_dump --inserts` writes them.
    pub(super) async fn inserts(
        &self,
        session: &mut RawSession,
        intake: &mut Intake,
        block: usize,
    ) -> Result<(), Fault> {
        let name = self.backup.name(block);
        let read = async {
            let mut decoder = self.decoder()?;
            let mut inserts = Inserts::new(Dialect::of(&self.backup.archive.toc));
            while let Some(stored) = intake.stream().await? {
                let mut stored: &[u8] = &stored;
                while let Some(text) = decoder.decode(&mut stored).map_err(IntakeError::from)? {
                    inserts.take(text, session).await?;
                }
            }
            decoder.finish().map_err(IntakeError::from)?;
            inserts.finish(session).await
        };
        let digest = read.await.map_err(|stopped: Stopped| stopped.fault(&name))?;
        self.learn(block, &digest);
        Ok(())
    }

    /// One block of large objects, each a compressed stream of its own.
    pub(super) async fn large_objects(
        &self,
        session: &mut RawSession,
        intake: &mut Intake,
        block: usize,
    ) -> Result<(), Fault> {
        let read = async {
            let mut decoder = self.decoder()?;
            let mut digest = TableDigest::default();
            let mut batch = ObjectBatch::default();
            loop {
                let oid = match intake.next().await? {
                    Some(Event::LargeObject { oid }) => oid,
                    Some(Event::End) => break,
                    _ => return Err(IntakeError::Truncated.into()),
                };
                self.objects.take(oid)?;
                decoder.reset().map_err(IntakeError::from)?;
                let mut hasher = RowHasher::default();
                let mut size = 0;
                while let Some(stored) = intake.stream().await? {
                    let mut stored: &[u8] = &stored;
                    while let Some(text) = decoder.decode(&mut stored).map_err(IntakeError::from)? {
                        hasher.update(text);
                        batch.put(oid, size, text);
                        size += text.len() as u64;
                        if batch.is_full() {
                            batch.send(session).await?;
                        }
                    }
                }
                // From 16 on `pg_dump` writes no stream where there is nothing to compress.
                if decoder.stored() > 0 {
                    decoder.finish().map_err(IntakeError::from)?;
                }
                digest.merge(&object_digest(oid, &hasher, size));
            }
            batch.send(session).await?;
            Ok(digest)
        };
        let digest = read.await.map_err(|stopped: Stopped| stopped.fault("large objects"))?;
        self.learn(block, &digest);
        Ok(())
    }
}

/// Ends a COPY: the server has taken as many rows as were read.
async fn all_taken(copy: Rows<'_>, digest: &TableDigest, name: &str) -> Result<(), Fault> {
    let taken = copy.finish().await.map_err(|error| load_fault(&error, name))?;
    if taken == digest.rows {
        return Ok(());
    }
    Err(IntakeError::RowCount { expected: digest.rows, found: taken }.fault(name))
}
