//! Fragments on their way to whoever has the series, and partials on their way back.
//!
//! ```text
//! answer  := packed( 0 reason (text)  |  1 partial )
//! partial := steps series samples  group count group*  remark count remark*      (numbers are varints)
//! group   := pair count (name, value)*  drops name (u8)  count  step minus the one before*  columns (u8)
//!            value (f64)*  second (f64)* where columns has 1  count (f64)* where 2  moving (u8)* where 4
//! remark  := text  info (u8)  start  end
//! ```

use std::sync::Arc;

use engram_model::Labels;
use engram_model::error::Class;
use engram_query::fragment::{Fragment, OPS, Partial, PartialGroup, Remark, Rules};
use engram_query::functions::lookup;
use engram_query::parse::ast::Span;
use engram_storage::codec::{Broken, Reader, put_f64, put_prefixed, put_uvarint};

use super::ask::ANSWER_BYTES_MAX;
use super::{pack, proto, read_selects, selects, unpack};
use crate::error::Error;
use crate::peer::{DECLINED, Select, Summed, Summing};

const SECOND: u8 = 1;
const COUNTS: u8 = 2;
const MOVING: u8 = 4;

/// A request to sum up.
#[must_use]
pub fn request(all: &[Select], summing: &Summing) -> proto::SumRequest {
    let fragment = &summing.fragment;
    let rules = &fragment.rules;
    proto::SumRequest {
        select: Some(selects(all)),
        shard_size: summing.shard_size,
        fragment: Some(proto::Fragment {
            op: fragment.op.as_str().to_owned(),
            grouping: fragment.grouping.clone(),
            without: fragment.without,
            func: fragment.func.unwrap_or_default().to_owned(),
            params: fragment.params.clone(),
            range_ms: fragment.range_ms,
            offset_ms: fragment.offset_ms,
            at: fragment.at,
            start: fragment.start,
            step_ms: fragment.step_ms,
            steps: u32::try_from(fragment.steps).unwrap_or(u32::MAX),
            lookback_ms: rules.lookback_ms,
            samples_max: rules.samples_max,
            bytes_max: rules.bytes_max,
            within_ms: rules.within_ms,
            delayed_name_removal: rules.delayed_name_removal,
            type_and_unit_labels: rules.type_and_unit_labels,
            span_start: fragment.span.start,
            span_end: fragment.span.end,
        }),
    }
}

/// A request to sum up that has arrived. What of it this node does not know is none that can be summed up here.
///
/// # Errors
/// Invalid for what no node of this version sends.
pub fn read_request(request: proto::SumRequest) -> Result<(Vec<Select>, Option<Summing>), Error> {
    let part = |what: &str| Error::invalid(format!("a request to sum up has no {what}"));
    let selects = read_selects(request.select.ok_or_else(|| part("select"))?)?;
    let sent = request.fragment.ok_or_else(|| part("fragment"))?;
    let op = OPS.into_iter().find(|op| op.as_str() == sent.op);
    let function = lookup(&sent.func);
    let (Some(op), true) = (op, sent.func.is_empty() || function.is_some()) else { return Ok((selects, None)) };
    let fragment = Fragment {
        op,
        grouping: sent.grouping,
        without: sent.without,
        func: function.map(|function| function.name),
        params: sent.params,
        range_ms: sent.range_ms,
        matchers: selects.first().map(|select| select.matchers.to_vec()).unwrap_or_default(),
        offset_ms: sent.offset_ms,
        at: sent.at,
        start: sent.start,
        step_ms: sent.step_ms,
        steps: sent.steps as usize,
        rules: Rules {
            lookback_ms: sent.lookback_ms,
            samples_max: sent.samples_max,
            bytes_max: sent.bytes_max,
            within_ms: sent.within_ms,
            delayed_name_removal: sent.delayed_name_removal,
            type_and_unit_labels: sent.type_and_unit_labels,
        },
        span: Span { start: sent.span_start, end: sent.span_end },
    };
    fragment.check().map_err(Error::invalid)?;
    Ok((selects, Some(Summing { fragment: Arc::new(fragment), shard_size: request.shard_size })))
}

/// The bytes of an answer.
#[must_use]
pub fn put_summed(summed: &Summed) -> Vec<u8> {
    let mut out = Vec::new();
    match summed {
        Summed::Declined(why) => {
            out.push(0);
            put_prefixed(&mut out, why.as_bytes());
        }
        Summed::Done(partial) => {
            out.push(1);
            put_partial(&mut out, partial);
        }
    }
    pack(&out)
}

/// An answer that has arrived.
///
/// # Errors
/// Internal: the bytes are none.
pub fn read_summed(bytes: &[u8]) -> Result<Summed, Error> {
    let bad = |what: String| Error::new(Class::Internal, format!("a sum of another node does not decode: {what}"));
    let body = unpack(bytes, ANSWER_BYTES_MAX).map_err(bad)?;
    read_body(&body).map_err(|broken| bad(broken.to_string()))
}

fn put_partial(out: &mut Vec<u8>, partial: &Partial) {
    put_uvarint(out, partial.steps as u64);
    put_uvarint(out, partial.series);
    put_uvarint(out, partial.samples);
    put_uvarint(out, partial.groups.len() as u64);
    partial.groups.iter().for_each(|group| put_group(out, group));
    put_uvarint(out, partial.remarks.len() as u64);
    for remark in &partial.remarks {
        put_prefixed(out, remark.text.as_bytes());
        out.push(u8::from(remark.info));
        put_uvarint(out, u64::from(remark.span.start));
        put_uvarint(out, u64::from(remark.span.end));
    }
}

fn put_group(out: &mut Vec<u8>, group: &PartialGroup) {
    put_uvarint(out, group.labels.len() as u64);
    for (name, value) in group.labels.iter() {
        put_prefixed(out, name.as_bytes());
        put_prefixed(out, value.as_bytes());
    }
    out.push(u8::from(group.drop_name));
    put_uvarint(out, group.at.len() as u64);
    let mut before = 0;
    for at in &group.at {
        put_uvarint(out, u64::from(at.wrapping_sub(before)));
        before = *at;
    }
    let flag = |is_empty: bool, flag: u8| if is_empty { 0 } else { flag };
    let columns =
        [(group.second.is_empty(), SECOND), (group.counts.is_empty(), COUNTS), (group.moving.is_empty(), MOVING)];
    out.push(columns.into_iter().map(|(is_empty, one)| flag(is_empty, one)).sum());
    for column in [&group.values, &group.second, &group.counts] {
        column.iter().for_each(|value| put_f64(out, *value));
    }
    out.extend(group.moving.iter().map(|moves| u8::from(*moves)));
}

fn read_body(body: &[u8]) -> Result<Summed, Broken> {
    let mut r = Reader::new(body);
    if r.u8()? == 0 {
        let why = r.str()?;
        return Ok(Summed::Declined(DECLINED.into_iter().find(|known| *known == why).unwrap_or(DECLINED[0])));
    }
    let steps = usize::try_from(r.uvarint()?).unwrap_or(usize::MAX);
    let (series, samples) = (r.uvarint()?, r.uvarint()?);
    let groups = (0..r.length(body.len())?).map(|_| read_group(&mut r, body.len())).collect::<Result<_, _>>()?;
    let remark = |r: &mut Reader<'_>| {
        let (text, info) = (r.str()?.to_owned(), r.u8()? == 1);
        let mut place = || Ok::<u32, Broken>(u32::try_from(r.uvarint()?).unwrap_or(u32::MAX));
        Ok(Remark { text, info, span: Span { start: place()?, end: place()? } })
    };
    let remarks = (0..r.length(body.len())?).map(|_| remark(&mut r)).collect::<Result<_, Broken>>()?;
    r.end()?;
    Ok(Summed::Done(Partial { steps, series, samples, groups, remarks }))
}

fn read_group(r: &mut Reader<'_>, bytes: usize) -> Result<PartialGroup, Broken> {
    let count = r.length(bytes / 2)?;
    let pairs: Vec<(&str, &str)> = (0..count).map(|_| Ok((r.str()?, r.str()?))).collect::<Result<_, Broken>>()?;
    if pairs.windows(2).any(|two| two[0].0 >= two[1].0) {
        return Err(Broken { at: r.at(), what: "labels are not sorted" });
    }
    let labels = Labels::from_sorted(pairs.iter().copied());
    let drop_name = r.u8()? == 1;
    // Each step has a value of eight bytes.
    let count = r.length(bytes / 8)?;
    let mut before = 0_u32;
    let mut step = || {
        let more = u32::try_from(r.uvarint()?).unwrap_or(u32::MAX);
        before = before.saturating_add(more);
        Ok::<u32, Broken>(before)
    };
    let at = (0..count).map(|_| step()).collect::<Result<_, Broken>>()?;
    let columns = r.u8()?;
    let mut floats =
        |has: bool| (0..if has { count } else { 0 }).map(|_| r.f64()).collect::<Result<Vec<f64>, Broken>>();
    let values = floats(true)?;
    let second = floats(columns & SECOND != 0)?;
    let counts = floats(columns & COUNTS != 0)?;
    let moves = if columns & MOVING != 0 { count } else { 0 };
    let moving = (0..moves).map(|_| Ok(r.u8()? == 1)).collect::<Result<_, Broken>>()?;
    Ok(PartialGroup { labels, drop_name, at, values, second, counts, moving })
}

#[cfg(test)]
mod tests {
    use super::*;
    use engram_model::place::{Epoch, PartitionId};
    use engram_model::tenant::TenantId;
    use engram_model::{Matcher, TimeRange};
    use engram_query::parse::ast::AggregateOp;
    use proptest::prelude::*;

    fn group() -> impl Strategy<Value = PartialGroup> {
        let one = (any::<u64>(), any::<u64>(), 0_u8..40, any::<bool>());
        let steps = proptest::collection::btree_map(0_u32..500, one, 0..20);
        let label = "[a-z]{0,4}";
        (label, any::<bool>(), steps, any::<bool>(), any::<bool>()).prop_map(
            |(label, drop_name, steps, second, mean)| {
                let floats = |f: fn(&(u64, u64, u8, bool)) -> f64| steps.values().map(f).collect::<Vec<_>>();
                PartialGroup {
                    labels: Labels::from_pairs([("a", label)]),
                    drop_name,
                    at: steps.keys().copied().collect(),
                    values: floats(|one| f64::from_bits(one.0)),
                    second: if second { floats(|one| f64::from_bits(one.1)) } else { Vec::new() },
                    counts: if mean { floats(|one| f64::from(one.2)) } else { Vec::new() },
                    moving: if mean { steps.values().map(|one| one.3).collect() } else { Vec::new() },
                }
            },
        )
    }

    /// By bits: a NaN is itself.
    fn spelled(partial: &Partial) -> String {
        let bits = |all: &[f64]| all.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let groups = partial.groups.iter().map(|g| {
            let numbers = (bits(&g.values), bits(&g.second), bits(&g.counts));
            (g.labels.to_string(), g.drop_name, g.at.clone(), numbers, g.moving.clone())
        });
        let groups: Vec<_> = groups.collect();
        format!("{} {} {} {groups:?} {:?}", partial.steps, partial.series, partial.samples, partial.remarks)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn a_partial_comes_back(groups in proptest::collection::vec(group(), 0..6), series: u64, at: usize) {
            let remark = Remark { text: "é".into(), info: true, span: Span { start: 3, end: 9 } };
            let partial = Partial { steps: 500, series, samples: 7, groups, remarks: vec![remark] };
            let bytes = put_summed(&Summed::Done(partial.clone()));
            let Summed::Done(back) = read_summed(&bytes).unwrap() else { panic!("declined") };
            prop_assert_eq!(spelled(&back), spelled(&partial));
            // Bytes that were cut are an error, and any others no panic.
            let body = unpack(&bytes, 1 << 20).unwrap();
            prop_assert!(read_body(&body[..at % body.len()]).is_err());
            let mut broken = body.clone();
            let at = at % body.len();
            broken[at] ^= 0x55;
            let _any = read_body(&broken);
        }
    }

    #[test]
    fn a_request_comes_back_and_what_is_not_known_is_not_summed_up() {
        let matchers = vec![Matcher::equal("__name__", "m")];
        let fragment = Fragment {
            op: AggregateOp::Avg,
            grouping: vec!["a".into(), "b".into()],
            without: true,
            func: Some("quantile_over_time"),
            params: vec![0.5],
            range_ms: 60_000,
            matchers: matchers.clone(),
            offset_ms: -5,
            at: Some(-7),
            start: 1,
            step_ms: 2,
            steps: 3,
            rules: Rules {
                lookback_ms: 4,
                samples_max: 5,
                bytes_max: 6,
                within_ms: 7,
                delayed_name_removal: true,
                type_and_unit_labels: true,
            },
            span: Span { start: 8, end: 9 },
        };
        let select = Select {
            tenant: TenantId::new("a").unwrap(),
            partition: PartitionId(3),
            epoch: Epoch(7),
            range: TimeRange::ALL,
            matchers: Arc::new(matchers),
            series_max: 9,
            wanted: Arc::default(),
            as_of: 77,
        };
        let summing = Summing { fragment: Arc::new(fragment.clone()), shard_size: 11 };
        let sent = request(&[select], &summing);
        let (selects, back) = read_request(sent.clone()).unwrap();
        let back = back.unwrap();
        assert_eq!((selects.len(), selects[0].series_max, back.shard_size), (1, 9, 11));
        // Patterns of matchers are not compared.
        assert_eq!(format!("{:?}", back.fragment.matchers), format!("{:?}", fragment.matchers));
        let without = |f: &Fragment| Fragment { matchers: Vec::new(), ..f.clone() };
        assert_eq!(without(&back.fragment), without(&fragment));
        let changed = |change: fn(&mut proto::Fragment)| {
            let mut other = sent.clone();
            change(other.fragment.as_mut().unwrap());
            read_request(other)
        };
        assert!(changed(|f| f.op = "median".into()).unwrap().1.is_none());
        assert!(changed(|f| f.func = "new_over_time".into()).unwrap().1.is_none());
        assert!(changed(|f| f.steps = 0).is_err() && changed(|f| f.func = "abs".into()).is_err());
        for why in DECLINED {
            let bytes = put_summed(&Summed::Declined(why));
            assert!(matches!(read_summed(&bytes).unwrap(), Summed::Declined(back) if back == why));
        }
    }
}
