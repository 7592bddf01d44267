//! The objects, and what is done with them. Pure: a request in, an answer out.

use super::http::{Answer, Request};
use engram_model::time::{Clock, Millis};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

#[derive(Clone, Debug)]
struct Object {
    bytes: Vec<u8>,
    etag: u64,
    at: Millis,
}

/// All objects by name.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    objects: BTreeMap<String, Object>,
    /// Parts of uploads that are not complete.
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    /// What lists show, where that is not what is there.
    frozen: Option<BTreeMap<String, Object>>,
    given: u64,
}

impl Shelf {
    pub(super) fn len(&self) -> usize {
        self.objects.len()
    }

    pub(super) fn bytes(&self, key: &str) -> Option<u64> {
        self.objects.get(key).map(|object| object.bytes.len() as u64)
    }

    /// The names that follow `prefix`, up to the next slash.
    pub(super) fn below(&self, prefix: &str) -> BTreeSet<String> {
        let rest = self.objects.keys().filter_map(|key| key.strip_prefix(prefix));
        rest.filter_map(|rest| rest.split('/').next()).map(ToOwned::to_owned).collect()
    }

    /// Whether lists show other objects than there are.
    pub(super) fn is_old(&self) -> bool {
        self.frozen.as_ref().is_some_and(|frozen| !frozen.keys().eq(self.objects.keys()))
    }

    /// Whether lists show this moment from now on.
    pub(super) fn freeze(&mut self, frozen: bool) {
        self.frozen = frozen.then(|| self.objects.clone());
    }

    /// Does what is asked.
    pub(super) fn answer(&mut self, request: &Request) -> Answer {
        let upload = request.query.get("uploadId").cloned();
        match (request.method.as_str(), upload) {
            ("PUT", Some(id)) => self.part(&id, request),
            ("POST", Some(id)) => self.complete(&id, request),
            ("DELETE", Some(id)) => {
                self.uploads.remove(&id);
                Answer::new(204, "")
            }
            ("POST", None) if request.query.contains_key("uploads") => self.begin(),
            ("POST", None) if request.query.contains_key("delete") => self.delete(&request.body),
            ("PUT", None) => self.put(request),
            ("DELETE", None) => {
                self.objects.remove(&request.key);
                Answer::new(204, "")
            }
            ("GET", None) if request.query.contains_key("list-type") => self.list(request),
            ("GET" | "HEAD", None) => self.get(request),
            _ => Answer::error(405, "MethodNotAllowed"),
        }
    }

    fn store(&mut self, key: &str, bytes: Vec<u8>) -> u64 {
        self.given += 1;
        let object = Object { bytes, etag: self.given, at: Clock::real().now() };
        self.objects.insert(key.to_owned(), object);
        self.given
    }

    fn put(&mut self, request: &Request) -> Answer {
        let there = self.objects.get(&request.key);
        let new_only = request.header("if-none-match").is_some();
        let other = request.header("if-match").is_some_and(|tag| there.is_none_or(|object| tag != tagged(object.etag)));
        if new_only && there.is_some() || other {
            return Answer::error(412, "PreconditionFailed");
        }
        let etag = self.store(&request.key, request.body.clone());
        Answer::new(200, "").with("etag", tagged(etag))
    }

    fn begin(&mut self) -> Answer {
        self.given += 1;
        let id = format!("upload-{}", self.given);
        self.uploads.insert(id.clone(), BTreeMap::new());
        let id = format!("<UploadId>{id}</UploadId>");
        Answer::new(200, format!("<InitiateMultipartUploadResult>{id}</InitiateMultipartUploadResult>"))
    }

    fn part(&mut self, id: &str, request: &Request) -> Answer {
        let number = request.query.get("partNumber").and_then(|text| text.parse().ok());
        let (Some(parts), Some(number)) = (self.uploads.get_mut(id), number) else {
            return Answer::error(404, "NoSuchUpload");
        };
        parts.insert(number, request.body.clone());
        Answer::new(200, "").with("etag", tagged(u64::from(number)))
    }

    fn complete(&mut self, id: &str, request: &Request) -> Answer {
        let Some(parts) = self.uploads.remove(id) else { return Answer::error(404, "NoSuchUpload") };
        let bytes = parts.into_values().flatten().collect();
        let tag = tagged(self.store(&request.key, bytes));
        let text = format!("<ETag>{}</ETag>", escaped(&tag));
        Answer::new(200, format!("<CompleteMultipartUploadResult>{text}</CompleteMultipartUploadResult>"))
    }

    fn delete(&mut self, body: &[u8]) -> Answer {
        let text = String::from_utf8_lossy(body);
        let mut told = String::new();
        for key in text.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()) {
            self.objects.remove(key);
            told.push_str(&format!("<Deleted><Key>{key}</Key></Deleted>"));
        }
        Answer::new(200, format!("<DeleteResult>{told}</DeleteResult>"))
    }

    fn get(&self, request: &Request) -> Answer {
        let Some(object) = self.objects.get(&request.key) else { return Answer::error(404, "NoSuchKey") };
        let len = object.bytes.len();
        let answer = match request.header("range").map(|text| range(text, len)) {
            None => Answer::new(200, object.bytes.clone()),
            Some(None) => return Answer::error(416, "InvalidRange"),
            Some(Some(range)) => {
                let said = format!("bytes {}-{}/{len}", range.start, range.end - 1);
                Answer::new(206, &object.bytes[range]).with("content-range", said)
            }
        };
        answer.with("etag", tagged(object.etag)).with("last-modified", Date::of(object.at).for_headers())
    }

    fn list(&self, request: &Request) -> Answer {
        let asked = |name: &str| request.query.get(name).map_or("", String::as_str);
        let (prefix, delimiter, after) = (asked("prefix"), asked("delimiter"), asked("start-after"));
        let (mut keys, mut folders) = (String::new(), BTreeSet::new());
        let shown = self.frozen.as_ref().unwrap_or(&self.objects);
        for (key, object) in shown.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > after) {
            let rest = &key[prefix.len()..];
            if let Some(at) = rest.find(delimiter).filter(|_| !delimiter.is_empty()) {
                folders.insert(format!("{prefix}{}", &rest[..at + delimiter.len()]));
                continue;
            }
            let (size, at, tag) = (object.bytes.len(), Date::of(object.at).for_lists(), escaped(&tagged(object.etag)));
            keys.push_str(&format!(
                "<Contents><Key>{}</Key><LastModified>{at}</LastModified><ETag>{tag}</ETag><Size>{size}</Size></Contents>",
                escaped(key)
            ));
        }
        let folder = |name: &String| format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escaped(name));
        let folders: String = folders.iter().map(folder).collect();
        let whole = "<IsTruncated>false</IsTruncated>";
        Answer::new(200, format!("<ListBucketResult>{whole}{keys}{folders}</ListBucketResult>"))
    }
}

fn tagged(etag: u64) -> String {
    format!("\"{etag}\"")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// `bytes=a-b`, `bytes=a-` or `bytes=-n` of so many; `None`: nothing of it is there.
fn range(text: &str, len: usize) -> Option<Range<usize>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first.parse::<usize>().ok(), last.parse::<usize>().ok()) {
        (Some(first), Some(last)) => first..last.saturating_add(1).min(len),
        (Some(first), None) => first..len,
        (None, Some(count)) => len.saturating_sub(count)..len,
        (None, None) => return None,
    };
    (!range.is_empty()).then_some(range)
}

/// A moment as people write it.
struct Date {
    year: i64,
    month: usize,
    day: i64,
    weekday: usize,
    second: i64,
}

impl Date {
    /// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    fn of(at: Millis) -> Self {
        let (days, second) = (at.div_euclid(86_400_000), at.rem_euclid(86_400_000) / 1000);
        let shifted = days + 719_468;
        let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * shifted_month + 2) / 5 + 1;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let index = |number: i64| usize::try_from(number).unwrap_or(0);
        Self { year, month: index(month), day, weekday: index((days + 4).rem_euclid(7)), second }
    }

    fn clock(&self) -> String {
        format!("{:02}:{:02}:{:02}", self.second / 3600, self.second / 60 % 60, self.second % 60)
    }

    fn for_headers(&self) -> String {
        const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
        const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        let (day, month) = (DAYS[self.weekday % 7], MONTHS[(self.month + 11) % 12]);
        format!("{day}, {:02} {month} {} {} GMT", self.day, self.year, self.clock())
    }

    fn for_lists(&self) -> String {
        format!("{}-{:02}-{:02}T{}.000Z", self.year, self.month, self.day, self.clock())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_clients_read_them() {
        // RFC 7231's own example.
        assert_eq!(Date::of(784_111_777_000).for_headers(), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(Date::of(951_782_400_000).for_lists(), "2000-02-29T00:00:00.000Z");
    }

    #[test]
    fn ranges_end_where_the_object_does() {
        let all = ["bytes=0-9", "bytes=5-", "bytes=-3", "bytes=9-20", "bytes=10-11", "bytes=x"].map(|t| range(t, 10));
        assert_eq!(all, [Some(0..10), Some(5..10), Some(7..10), Some(9..10), None, None]);
    }
}
