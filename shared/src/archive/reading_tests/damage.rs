//! Random damage: told by an error or by another digest, never a panic. `HOLDFAST_MUTATIONS` sets how often
//! (100 000 by default: a quarter of a minute of CPU; by hand, as many as there is time for).

use xxhash_rust::xxh3::xxh3_128;

use super::*;
use crate::archive::decode::PieceDecoder;
use crate::archive::script::{self, Surroundings};
use crate::plan::rebuild::{Extent, Item, Limits, plan_rebuild};

fn mutations() -> u64 {
    std::env::var("HOLDFAST_MUTATIONS").ok().and_then(|count| count.parse().ok()).unwrap_or(100_000)
}

/// Flips, cuts, splices, and lengths that lie.
fn damage(bytes: &[u8], other: &[u8], from: usize, dice: &mut Dice) -> Vec<u8> {
    let mut out = bytes.to_vec();
    let at = from + dice.below(out.len() - from);
    let run = 1 + dice.below(300);
    let end = out.len().min(at + run);
    match dice.below(10) {
        0..4 => (0..1 + dice.below(3)).for_each(|_| {
            let at = from + dice.below(bytes.len() - from);
            out[at] ^= 1 << dice.below(8);
        }),
        4 => out.truncate(at),
        5 => drop(out.drain(at..end)),
        6 => {
            let take = dice.below(other.len());
            let piece = other[take..other.len().min(take + run)].to_vec();
            drop(out.splice(at..end, piece));
        }
        7 => {
            let take = dice.below(bytes.len());
            let piece = bytes[take..bytes.len().min(take + run)].to_vec();
            drop(out.splice(at..at, piece));
        }
        8 => out[at] = dice.next() as u8,
        _ => {
            let lie = [0, 1, u32::MAX, i32::MAX as u32, 1 << 30, 1 << 31, 300][dice.below(7)].to_le_bytes();
            let end = out.len().min(at + 4);
            out[at..end].copy_from_slice(&lie[..end - at]);
        }
    }
    out
}

/// Same rows, whatever their order.
fn assert_same_rows(before: &[u8], after: &[u8], context: impl Fn() -> String) {
    let (mut before, mut after) = (rows_of(before), rows_of(after));
    before.sort_unstable();
    after.sort_unstable();
    assert!(before == after, "{}: other rows with the same digest", context());
}

/// Damages one archive `count` times: no panic, and no table whose rows changed while their digest did not.
fn damaged_archives_tell(name: &str, archive: &[u8], other: &[u8], count: u64) {
    let before = read(archive, archive.len()).unwrap();
    let (_, data_at) = Toc::read(archive).unwrap();
    let (mut refused, mut changed, mut harmless) = (0u64, 0u64, 0u64);
    for seed in 0..count {
        let mut dice = Dice(seed);
        // One in eight anywhere, the others in the data.
        let from = if dice.below(8) == 0 { 0 } else { data_at as usize };
        let damaged = damage(archive, other, from, &mut dice);
        let found = read(&damaged, 1 + dice.below(5000));
        let context = || format!("{name}, seed {seed}");
        let Ok(after) = found else {
            refused += 1;
            continue;
        };
        assert!(
            damaged.len() >= archive.len() || !archive.starts_with(&damaged),
            "{}: a cut went unnoticed",
            context()
        );
        let mut differs = false;
        for (dump_id, (text, digest)) in &after.tables {
            let Some((text_before, digest_before)) = before.tables.get(dump_id) else { continue };
            differs |= digest != digest_before;
            if text != text_before && digest == digest_before {
                assert_same_rows(text_before, text, context);
            }
        }
        for (oid, content) in &after.objects {
            let Some(content_before) = before.objects.get(oid) else { continue };
            differs |= content != content_before;
            assert_eq!(content == content_before, xxh3_128(content) == xxh3_128(content_before), "{}", context());
        }
        if differs { changed += 1 } else { harmless += 1 }
    }
    println!("{name}: {refused} refused, {changed} told by a digest, {harmless} without a difference");
    assert!(refused > count / 4, "{name}: only {refused} of {count} refused");
}

#[test]
fn damage_to_stock_archives_is_told() {
    for (i, (name, archive)) in STOCK.into_iter().enumerate() {
        damaged_archives_tell(name, archive, STOCK[(i + 1) % STOCK.len()].1, mutations() / 12);
    }
}

#[test]
fn damage_to_our_own_archives_is_told() {
    for (i, compression) in OWN.into_iter().enumerate() {
        let other = own(OWN[(i + 1) % OWN.len()]).0;
        damaged_archives_tell(&compression.to_string(), &own(compression).0, &other, mutations() / 12);
    }
}

/// What is made of a table of contents before anything of it is run.
#[test]
fn damage_to_a_table_of_contents_is_survived() {
    let around = Surroundings::default();
    let (mut read, mut planned) = (0u64, 0u64);
    for (i, (_, archive)) in STOCK.into_iter().enumerate() {
        let (_, data_at) = Toc::read(archive).unwrap();
        let head = &archive[..data_at as usize];
        for seed in 0..mutations() / 60 {
            let damaged = damage(head, STOCK[(i + 1) % STOCK.len()].1, 0, &mut Dice(seed));
            let Ok((toc, _)) = Toc::read(damaged.as_slice()) else { continue };
            read += 1;
            let _ = (script::session_settings(&toc), script::large_objects(&toc));
            let items = toc.entries.iter().map(|entry| {
                let _ = script::script(&toc, entry, &around);
                let (phase, kind) = script::classify(entry);
                Item { id: entry.dump_id, phase, kind, dependencies: script::dependencies(entry) }
            });
            let data = Extent { offset: data_at, length: archive.len() as u64 - data_at };
            planned += u64::from(plan_rebuild(&items.collect::<Vec<_>>(), &[], &Limits { workers: 2, data }).is_ok());
        }
    }
    assert!(read > planned && planned > 0, "{read} read, {planned} planned");
}

#[test]
fn damage_to_a_piece_is_told() {
    let decode = |compression: Compression, piece: Piece, stored: &[u8], fragment: usize| {
        let mut decoder = PieceDecoder::new(compression.header(), piece).ok()?;
        let (mut rows, mut out) = (RowReader::piece(), Vec::new());
        for mut input in stored.chunks(fragment) {
            while let Some(mut text) = decoder.decode(&mut input).ok()? {
                while let Some(batch) = rows.next(&mut text).ok()? {
                    out.extend_from_slice(batch.text);
                }
                assert!(out.len() as u64 <= piece.bytes);
            }
        }
        decoder.finish().ok()?;
        Some((out, rows.finish().ok()?))
    };
    for compression in OWN {
        let (archive, _, pieces) = own(compression);
        for (piece, digest) in pieces.into_iter().filter(|(piece, _)| piece.length > 0) {
            let stored = &archive[piece.offset as usize..(piece.offset + piece.length) as usize];
            let (text, found) = decode(compression, piece, stored, 10).unwrap();
            assert_eq!(found, digest);
            for seed in 0..mutations() / 36 {
                let mut dice = Dice(seed);
                let damaged = damage(stored, &archive, 0, &mut dice);
                if let Some((after, found)) = decode(compression, piece, &damaged, 1 + dice.below(500))
                    && found == digest
                {
                    assert_same_rows(&text, &after, || {
                        format!("{compression}, piece at {}, seed {seed}", piece.offset)
                    });
                }
            }
        }
    }
}
