//! Single values, from the text that the server writes to the bytes that it reads; `None` for any other text.

/// From 1970-01-01, the epoch of the civil calendar here, to 2000-01-01, the server's.
const EPOCH_DAYS: i64 = 10_957;
pub(super) const DAY_MICROSECONDS: i64 = 86_400_000_000;
/// Longer numbers than this are left to the server.
pub(super) const NUMERIC_BYTES: usize = 1000;

pub(super) fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = signed(text);
    let value = digits_value(digits)?;
    Some(if negative { -value } else { value })
}

fn signed(text: &[u8]) -> (bool, &[u8]) {
    text.strip_prefix(b"-").map_or((false, text), |digits| (true, digits))
}

/// Of up to 18 digits; longer ones are rare enough for the server.
fn digits_value(digits: &[u8]) -> Option<i64> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    digits.iter().try_fold(0i64, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
}

/// Groups of four digits, the weight of the first, the sign, and how many decimals are shown.
pub(super) fn numeric(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    const NEGATIVE: u16 = 0x4000;
    const NAN: u16 = 0xC000;
    if text == b"NaN" {
        out.extend_from_slice(&8i32.to_be_bytes());
        [0, 0, NAN, 0].iter().for_each(|part: &u16| out.extend_from_slice(&part.to_be_bytes()));
        return Some(());
    }
    let (negative, digits) = signed(text);
    let point = digits.iter().position(|&byte| byte == b'.');
    let (whole, decimals) = point.map_or((digits, [].as_slice()), |at| (&digits[..at], &digits[at + 1..]));
    let all_digits = whole.iter().chain(decimals).all(u8::is_ascii_digit);
    if whole.is_empty() || !all_digits || digits.len() > NUMERIC_BYTES || (point.is_some() && decimals.is_empty()) {
        return None;
    }
    let start = out.len();
    out.extend_from_slice(&[0; 12]);
    let group = |digits: &[u8]| digits.iter().fold(0u16, |value, byte| value * 10 + u16::from(byte - b'0'));
    let (mut weight, mut count, mut last) = (whole.len().div_ceil(4) as i16 - 1, 0u16, 0u16);
    let mut push = |value: u16| {
        if count == 0 && value == 0 {
            weight -= 1;
            return;
        }
        out.extend_from_slice(&value.to_be_bytes());
        count += 1;
        if value != 0 {
            last = count;
        }
    };
    let (first, others) = whole.split_at(whole.len() % 4);
    if !first.is_empty() {
        push(group(first));
    }
    others.chunks(4).for_each(|four| push(group(four)));
    for four in decimals.chunks(4) {
        push(group(four) * 10u16.pow(4 - four.len() as u32));
    }
    if last == 0 {
        weight = 0;
    }
    out.truncate(start + 12 + 2 * usize::from(last));
    let sign = if negative && last > 0 { NEGATIVE } else { 0 };
    let parts = [last, weight as u16, sign, decimals.len() as u16];
    out[start..start + 4].copy_from_slice(&(8 + 2 * i32::from(last)).to_be_bytes());
    for (slot, part) in out[start + 4..start + 12].chunks_mut(2).zip(parts) {
        slot.copy_from_slice(&part.to_be_bytes());
    }
    Some(())
}

/// `\\x6162`: the backslash is escaped.
pub(super) fn bytea(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let digits = text.strip_prefix(b"\\\\x")?;
    if digits.len() % 2 == 1 {
        return None;
    }
    out.extend_from_slice(&i32::try_from(digits.len() / 2).ok()?.to_be_bytes());
    for pair in digits.chunks_exact(2) {
        out.push(hex(pair)?);
    }
    Some(())
}

fn hex(pair: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    Some((digit(pair[0])? << 4 | digit(pair[1])?) as u8)
}

pub(super) fn uuid(text: &[u8]) -> Option<[u8; 16]> {
    const HYPHENS: [usize; 4] = [8, 13, 18, 23];
    if text.len() != 36 || HYPHENS.iter().any(|&at| text[at] != b'-') {
        return None;
    }
    let (mut value, mut at) = ([0; 16], 0);
    for byte in &mut value {
        at += usize::from(HYPHENS.contains(&at));
        *byte = hex(&text[at..at + 2])?;
        at += 2;
    }
    Some(value)
}

/// Days since 2000-01-01, and what follows. Infinity and years before Christ are left to the server.
pub(super) fn date(text: &[u8]) -> Option<(i64, &[u8])> {
    let year_end = text.iter().position(|&byte| byte == b'-').filter(|&at| (4..=7).contains(&at))?;
    let (year, rest) = (digits_value(&text[..year_end])?, &text[year_end..]);
    let (&[b'-', m1, m2, b'-', d1, d2], rest) = rest.split_first_chunk::<6>()? else { return None };
    let (month, day) = (digits_value(&[m1, m2])?, digits_value(&[d1, d2])?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    // The year begins in March, so that its last day is the one that may not be there.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + day_of_year;
    Some((era * 146_097 + day_of_era - 719_468 - EPOCH_DAYS, rest))
}

/// Microseconds since midnight, and what follows.
pub(super) fn time(text: &[u8]) -> Option<(i64, &[u8])> {
    let (&[h1, h2, b':', m1, m2, b':', s1, s2], mut rest) = text.split_first_chunk::<8>()? else { return None };
    let (hours, minutes, seconds) = (digits_value(&[h1, h2])?, digits_value(&[m1, m2])?, digits_value(&[s1, s2])?);
    let mut microseconds = ((hours * 60 + minutes) * 60 + seconds) * 1_000_000;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let digits = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if digits > 6 {
            return None;
        }
        microseconds += digits_value(&fraction[..digits])? * 10i64.pow(6 - digits as u32);
        rest = &fraction[digits..];
    }
    Some((microseconds, rest))
}

/// Microseconds since 2000-01-01 00:00, and what follows: a zone, or nothing.
pub(super) fn timestamp(text: &[u8]) -> Option<(i64, &[u8])> {
    let (days, rest) = date(text)?;
    let (microseconds, rest) = time(rest.strip_prefix(b" ")?)?;
    Some((days.checked_mul(DAY_MICROSECONDS)?.checked_add(microseconds)?, rest))
}

/// Of `+05`, `-03:30` or `+00:53:28`; all of it.
pub(super) fn offset_seconds(zone: &[u8]) -> Option<i64> {
    let (sign, rest) = zone.split_first()?;
    let parts = rest.split(|&byte| byte == b':').map(digits_value).collect::<Option<Vec<_>>>()?;
    let seconds = match parts[..] {
        [hours] => hours * 3600,
        [hours, minutes] => hours * 3600 + minutes * 60,
        [hours, minutes, seconds] => hours * 3600 + minutes * 60 + seconds,
        _ => return None,
    };
    match sign {
        b'+' => Some(seconds),
        b'-' => Some(-seconds),
        _ => None,
    }
}
