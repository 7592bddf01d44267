//! Questions with small answers: names, values, metadata, exemplars, counts, digests, what a replica holds.
//!
//! One answer is one MessagePack value, sent in pieces. Nodes that talk speak one version of the protocol, so an
//! answer needs no schema that grows.

use std::collections::BTreeSet;

use engram_model::digest::Digest;
use engram_model::sample::{Exemplar, Metadata, MetricKind};
use engram_model::tenant::TenantId;
use engram_model::{Labels, Millis, TimeRange};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::Error;
use crate::peer::{Counts, Exemplars, HeldWindows};

/// Most bytes of one answer.
pub const ANSWER_BYTES_MAX: usize = 512 << 20;

/// What is asked; the numbers travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Question {
    /// Label sets.
    Series = 1,
    /// Label names.
    Names = 2,
    /// Values of a label.
    Values = 3,
    /// Metadata of all metrics.
    Metadata = 4,
    /// Exemplars.
    Exemplars = 5,
    /// What makes the tenant large.
    Counts = 6,
    /// Digests by slot.
    Digests = 7,
    /// Tenants of a partition with the digest of all they have.
    Inventory = 8,
    /// What a partition holds by window.
    Windows = 9,
    /// What was set aside for a seal; answered in frames, see [`super::frozen`].
    Frozen = 10,
    /// Nothing: the answer comes when the metadata are known here as of the request's index.
    Known = 11,
}

impl Question {
    /// The question of a number.
    #[must_use]
    pub fn of(number: u32) -> Option<Self> {
        let all = [
            Self::Series,
            Self::Names,
            Self::Values,
            Self::Metadata,
            Self::Exemplars,
            Self::Counts,
            Self::Digests,
            Self::Inventory,
            Self::Windows,
            Self::Frozen,
            Self::Known,
        ];
        all.into_iter().find(|one| *one as u32 == number)
    }
}

type Pairs = Vec<(String, String)>;

/// What can be an answer: a value with a form that travels.
pub trait Answer: Sized {
    /// The form.
    type Form: Serialize + DeserializeOwned;
    /// Into it.
    fn form(self) -> Self::Form;
    /// Out of it.
    ///
    /// # Errors
    /// What no node of this version sends.
    fn of(form: Self::Form) -> Result<Self, Error>;
}

/// The bytes of an answer.
///
/// # Errors
/// Internal: our bug.
pub fn write<T: Answer>(answer: T) -> Result<Vec<u8>, Error> {
    rmp_serde::to_vec(&answer.form())
        .map_err(|e| Error::new(engram_model::Class::Internal, format!("an answer does not encode: {e}")))
}

/// The answer of bytes.
///
/// # Errors
/// Internal: the bytes are no answer.
pub fn read<T: Answer>(bytes: &[u8]) -> Result<T, Error> {
    let form = rmp_serde::from_slice(bytes).map_err(|e| {
        Error::new(engram_model::Class::Internal, format!("an answer of another node does not decode: {e}"))
    })?;
    T::of(form)
}

fn pairs(labels: &Labels) -> Pairs {
    labels.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

impl Answer for Vec<Labels> {
    type Form = Vec<Pairs>;

    fn form(self) -> Self::Form {
        self.iter().map(pairs).collect()
    }

    fn of(form: Self::Form) -> Result<Self, Error> {
        Ok(form.into_iter().map(Labels::from_pairs).collect())
    }
}

impl Answer for BTreeSet<String> {
    type Form = Vec<String>;

    fn form(self) -> Self::Form {
        self.into_iter().collect()
    }

    fn of(form: Self::Form) -> Result<Self, Error> {
        Ok(form.into_iter().collect())
    }
}

const KINDS: [MetricKind; 8] = [
    MetricKind::Unknown,
    MetricKind::Counter,
    MetricKind::Gauge,
    MetricKind::Histogram,
    MetricKind::GaugeHistogram,
    MetricKind::Summary,
    MetricKind::Info,
    MetricKind::StateSet,
];

impl Answer for Vec<(String, Metadata)> {
    type Form = Vec<(String, u8, String, String)>;

    fn form(self) -> Self::Form {
        let number = |kind| (0_u8..).zip(KINDS).find(|(_, one)| *one == kind).map_or(0, |(number, _)| number);
        self.into_iter().map(|(name, one)| (name, number(one.kind), one.help, one.unit)).collect()
    }

    fn of(form: Self::Form) -> Result<Self, Error> {
        let kind = |number: u8| KINDS.get(usize::from(number)).copied().unwrap_or_default();
        Ok(form
            .into_iter()
            .map(|(name, number, help, unit)| (name, Metadata { kind: kind(number), help, unit }))
            .collect())
    }
}

impl Answer for Exemplars {
    type Form = Vec<(Pairs, Vec<(Pairs, u64, i64)>)>;

    fn form(self) -> Self::Form {
        let one = |e: &Exemplar| (pairs(&e.labels), e.value.to_bits(), e.at);
        self.iter().map(|(labels, all)| (pairs(labels), all.iter().map(one).collect())).collect()
    }

    fn of(form: Self::Form) -> Result<Self, Error> {
        let one = |(labels, bits, at)| Exemplar {
            labels: Labels::from_pairs::<String, String>(labels),
            value: f64::from_bits(bits),
            at,
        };
        Ok(form
            .into_iter()
            .map(|(labels, all)| (Labels::from_pairs(labels), all.into_iter().map(one).collect()))
            .collect())
    }
}

type Numbers = (u64, u64, u64, Option<(Millis, Millis)>);
type Named = Vec<(String, u64)>;

impl Answer for Counts {
    type Form = (Numbers, Named, Named);

    fn form(self) -> Self::Form {
        ((self.series, self.samples, self.chunks, self.bounds), self.series_by_metric, self.series_by_pair)
    }

    fn of(((series, samples, chunks, bounds), by_metric, by_pair): Self::Form) -> Result<Self, Error> {
        Ok(Self { series, samples, chunks, bounds, series_by_metric: by_metric, series_by_pair: by_pair })
    }
}

impl Answer for Vec<(Millis, Digest)> {
    type Form = Self;

    fn form(self) -> Self {
        self
    }

    fn of(form: Self) -> Result<Self, Error> {
        Ok(form)
    }
}

impl Answer for () {
    type Form = ();

    fn form(self) {}

    fn of((): ()) -> Result<Self, Error> {
        Ok(())
    }
}

impl Answer for Vec<(TenantId, Digest)> {
    type Form = Vec<(String, Digest)>;

    fn form(self) -> Self::Form {
        self.into_iter().map(|(tenant, digest)| (tenant.as_str().to_owned(), digest)).collect()
    }

    fn of(form: Self::Form) -> Result<Self, Error> {
        let read = |(name, digest): (String, Digest)| {
            Ok((TenantId::new(&name).map_err(|e| Error::invalid(e.to_string()))?, digest))
        };
        form.into_iter().map(read).collect()
    }
}

type Windows = Vec<(TimeForm, u64)>;
type TimeForm = (Millis, Millis);

impl Answer for Vec<HeldWindows> {
    type Form = Vec<(String, Option<Millis>, Millis, u64, Windows)>;

    fn form(self) -> Self::Form {
        let live = |all: Vec<(TimeRange, u64)>| all.into_iter().map(|(w, n)| ((w.start, w.end), n)).collect();
        self.into_iter()
            .map(|one| (one.tenant.as_str().to_owned(), one.newest, one.appended_at, one.sealed, live(one.live)))
            .collect()
    }

    fn of(form: Self::Form) -> Result<Self, Error> {
        let live = |all: Windows| all.into_iter().map(|((start, end), n)| (TimeRange { start, end }, n)).collect();
        let read = |(name, newest, appended_at, sealed, windows): (String, _, _, _, _)| {
            let tenant = TenantId::new(&name).map_err(|e| Error::invalid(e.to_string()))?;
            Ok(HeldWindows { tenant, newest, appended_at, sealed, live: live(windows) })
        };
        form.into_iter().map(read).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn back<T: Answer>(value: T) -> T {
        read(&write(value).unwrap()).unwrap()
    }

    #[test]
    fn answers_come_back() {
        let labels = Labels::from_pairs([("a", "1"), ("b", "2")]);
        assert_eq!(back(vec![labels.clone()]), vec![labels.clone()]);
        let names: BTreeSet<String> = ["x".to_owned(), "y".to_owned()].into();
        assert_eq!(back(names.clone()), names);
        let metadata =
            vec![("m".to_owned(), Metadata { kind: MetricKind::Info, help: "h".into(), unit: String::new() })];
        assert_eq!(back(metadata.clone()), metadata);
        let exemplars: Exemplars = vec![(labels.clone(), vec![Exemplar { labels, value: -0.0, at: -7 }])];
        assert_eq!(back(exemplars.clone()), exemplars);
        let counts =
            Counts { series: 1, bounds: Some((-1, 2)), series_by_metric: vec![("m".into(), 3)], ..Counts::default() };
        assert_eq!(back(counts.clone()), counts);
        let inventory = vec![(TenantId::new("t").unwrap(), Digest { count: 1, low: 2, high: u64::MAX })];
        assert_eq!(back(inventory.clone()), inventory);
        back(());
        let windows = vec![HeldWindows {
            tenant: TenantId::new("t").unwrap(),
            newest: Some(5),
            appended_at: 7,
            sealed: 3,
            live: vec![(TimeRange { start: 0, end: 9 }, 4)],
        }];
        assert_eq!(back(windows.clone()), windows);
        assert!(read::<Counts>(&[1, 2, 3]).is_err());
        for number in 0..20 {
            assert!(Question::of(number).is_none_or(|q| q as u32 == number));
        }
    }
}
