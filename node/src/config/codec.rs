//! How the text of an option becomes its value and back; one codec a kind of value.

use std::path::PathBuf;
use std::time::Duration;

use engram_storage::object::options::{Checksum, Encryption, Place, Secret};

use super::units;
use super::{LogFormat, Name};

/// Between text and value.
pub trait Codec {
    /// The value's type.
    type Value;
    /// What a person should write, for help and errors.
    const EXPECTS: &'static str;
    /// The placeholder in help texts.
    const SHORT: &'static str;

    /// Reads a text.
    ///
    /// # Errors
    /// A reason when there is more to say than [`Codec::EXPECTS`]; else empty.
    fn read(text: &str) -> Result<Self::Value, String>;
    /// The text that reads back to this value.
    fn show(value: &Self::Value) -> String;
}

/// `5m`, at least a millisecond.
pub struct Time;

impl Codec for Time {
    type Value = Duration;
    const EXPECTS: &'static str = "a duration such as 30s, 5m or 1h30m, longer than 0";
    const SHORT: &'static str = "DURATION";

    fn read(text: &str) -> Result<Duration, String> {
        let millis = units::parse_duration_ms(text).map_err(str::to_owned)?;
        if millis == 0 {
            return Err("it is 0".to_owned());
        }
        Ok(Duration::from_millis(millis.unsigned_abs()))
    }

    fn show(value: &Duration) -> String {
        units::format_duration_ms(i64::try_from(value.as_millis()).unwrap_or(i64::MAX))
    }
}

/// `5m` or `0`, in milliseconds.
pub struct Millis;

impl Codec for Millis {
    type Value = i64;
    const EXPECTS: &'static str = "a duration such as 30s, 5m or 15d, or 0";
    const SHORT: &'static str = "DURATION";

    fn read(text: &str) -> Result<i64, String> {
        units::parse_duration_ms(text).map_err(str::to_owned)
    }

    fn show(value: &i64) -> String {
        if *value == 0 { "0".to_owned() } else { units::format_duration_ms(*value) }
    }
}

/// `15d`, `0`, or `auto` for nothing.
pub struct Maybe;

impl Codec for Maybe {
    type Value = Option<i64>;
    const EXPECTS: &'static str = "a duration such as 30d, 0, or auto";
    const SHORT: &'static str = "DURATION";

    fn read(text: &str) -> Result<Option<i64>, String> {
        if text == "auto" { Ok(None) } else { Millis::read(text).map(Some) }
    }

    fn show(value: &Option<i64>) -> String {
        value.as_ref().map_or_else(|| "auto".to_owned(), Millis::show)
    }
}

/// `2h,12h,24h`, in milliseconds.
pub struct Ranges;

impl Codec for Ranges {
    type Value = Vec<i64>;
    const EXPECTS: &'static str = "durations with commas between, such as 2h,12h,24h";
    const SHORT: &'static str = "DURATIONS";

    fn read(text: &str) -> Result<Vec<i64>, String> {
        text.split(',').map(|one| units::parse_duration_ms(one.trim()).map_err(str::to_owned)).collect()
    }

    fn show(value: &Vec<i64>) -> String {
        value.iter().map(|one| units::format_duration_ms(*one)).collect::<Vec<_>>().join(",")
    }
}

/// `100MiB`.
pub struct Size;

impl Codec for Size {
    type Value = u64;
    const EXPECTS: &'static str = "a size such as 512KiB, 100MiB or 2GiB, larger than 0";
    const SHORT: &'static str = "SIZE";

    fn read(text: &str) -> Result<u64, String> {
        match units::parse_size(text).map_err(str::to_owned)? {
            0 => Err("it is 0".to_owned()),
            bytes => Ok(bytes),
        }
    }

    fn show(value: &u64) -> String {
        units::format_size(*value)
    }
}

/// `100MiB` or `0`.
pub struct Bytes;

impl Codec for Bytes {
    type Value = u64;
    const EXPECTS: &'static str = "a size such as 512KiB, 100MiB or 2GiB, or 0";
    const SHORT: &'static str = "SIZE";

    fn read(text: &str) -> Result<u64, String> {
        units::parse_size(text).map_err(str::to_owned)
    }

    fn show(value: &u64) -> String {
        if *value == 0 { "0".to_owned() } else { units::format_size(*value) }
    }
}

/// A whole number up to 2^64.
pub struct Count;

impl Codec for Count {
    type Value = u64;
    const EXPECTS: &'static str = "a whole number";
    const SHORT: &'static str = "NUMBER";

    fn read(text: &str) -> Result<u64, String> {
        text.parse().map_err(|_| String::new())
    }

    fn show(value: &u64) -> String {
        value.to_string()
    }
}

/// A whole number up to 2^32.
pub struct Count32;

impl Codec for Count32 {
    type Value = u32;
    const EXPECTS: &'static str = "a whole number below 2^32";
    const SHORT: &'static str = "NUMBER";

    fn read(text: &str) -> Result<u32, String> {
        text.parse().map_err(|_| String::new())
    }

    fn show(value: &u32) -> String {
        value.to_string()
    }
}

/// A whole number of things that are held in memory, at least one.
pub struct Some1;

impl Codec for Some1 {
    type Value = usize;
    const EXPECTS: &'static str = "a whole number from 1 to 1000000";
    const SHORT: &'static str = "NUMBER";

    fn read(text: &str) -> Result<usize, String> {
        text.parse().ok().filter(|n| (1..=1_000_000).contains(n)).ok_or_else(String::new)
    }

    fn show(value: &usize) -> String {
        value.to_string()
    }
}

/// A number of partitions.
pub struct Partitions;

impl Codec for Partitions {
    type Value = u32;
    const EXPECTS: &'static str = "a whole number from 1 to 65536";
    const SHORT: &'static str = "NUMBER";

    fn read(text: &str) -> Result<u32, String> {
        text.parse().ok().filter(|n| (1..=65_536).contains(n)).ok_or_else(String::new)
    }

    fn show(value: &u32) -> String {
        value.to_string()
    }
}

/// `true` or `false`.
pub struct Switch;

impl Codec for Switch {
    type Value = bool;
    const EXPECTS: &'static str = "true or false";
    const SHORT: &'static str = "BOOL";

    fn read(text: &str) -> Result<bool, String> {
        text.parse().map_err(|_| String::new())
    }

    fn show(value: &bool) -> String {
        value.to_string()
    }
}

/// A directory.
pub struct Folder;

impl Codec for Folder {
    type Value = PathBuf;
    const EXPECTS: &'static str = "the path of a directory";
    const SHORT: &'static str = "PATH";

    fn read(text: &str) -> Result<PathBuf, String> {
        if text.is_empty() || text.contains('\0') { Err(String::new()) } else { Ok(text.into()) }
    }

    fn show(value: &PathBuf) -> String {
        value.display().to_string()
    }
}

/// `host:port` to listen on.
pub struct Address;

impl Codec for Address {
    type Value = String;
    const EXPECTS: &'static str = "host:port, such as 127.0.0.1:9009, 0.0.0.0:9009 or [::]:9009";
    const SHORT: &'static str = "HOST:PORT";

    fn read(text: &str) -> Result<String, String> {
        let (host, port) = text.rsplit_once(':').ok_or("there is no port")?;
        if host.is_empty() {
            return Err("there is no host".to_owned());
        }
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return Err("an IPv6 address goes into brackets".to_owned());
        }
        if host.contains(char::is_whitespace) || host.contains('/') {
            return Err("it is no host".to_owned());
        }
        port.parse::<u16>().map_err(|_| format!("{port:?} is no port"))?;
        Ok(text.to_owned())
    }

    fn show(value: &String) -> String {
        value.clone()
    }
}

/// `host:port` of several nodes.
pub struct Addresses;

impl Codec for Addresses {
    type Value = Vec<String>;
    const EXPECTS: &'static str = "nothing, or host:port of one or more nodes with commas between them";
    const SHORT: &'static str = "HOST:PORT,…";

    fn read(text: &str) -> Result<Vec<String>, String> {
        let mut all = Vec::new();
        for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let one = Address::read(one)?;
            if !all.contains(&one) {
                all.push(one);
            }
        }
        if all.len() > 64 { Err("more than 64 addresses".to_owned()) } else { Ok(all) }
    }

    fn show(value: &Vec<String>) -> String {
        value.join(",")
    }
}

/// `host:port` that others reach this node by, or `auto`.
pub struct Advertised;

impl Codec for Advertised {
    type Value = String;
    const EXPECTS: &'static str = "auto, or host:port such as node1.example:9095";
    const SHORT: &'static str = "HOST:PORT";

    fn read(text: &str) -> Result<String, String> {
        if text == "auto" { Ok(text.to_owned()) } else { Address::read(text) }
    }

    fn show(value: &String) -> String {
        value.clone()
    }
}

/// How many replicas.
pub struct Replicas;

impl Codec for Replicas {
    type Value = u32;
    const EXPECTS: &'static str = "a whole number from 1 to 7";
    const SHORT: &'static str = "NUMBER";

    fn read(text: &str) -> Result<u32, String> {
        text.parse().ok().filter(|n| (1..=7).contains(n)).ok_or_else(String::new)
    }

    fn show(value: &u32) -> String {
        value.to_string()
    }
}

/// A name of a node or a zone.
pub struct Word;

impl Codec for Word {
    type Value = Name;
    const EXPECTS: &'static str = "1 to 63 letters, digits, '-', '_' or '.'";
    const SHORT: &'static str = "NAME";

    fn read(text: &str) -> Result<Name, String> {
        let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if text.is_empty() || text.len() > 63 || !text.chars().all(good) {
            Err(String::new())
        } else {
            Ok(text.to_owned())
        }
    }

    fn show(value: &Name) -> String {
        value.clone()
    }
}

/// A word without spaces, or nothing.
pub struct Text;

impl Codec for Text {
    type Value = String;
    const EXPECTS: &'static str = "a text without spaces, or nothing";
    const SHORT: &'static str = "TEXT";

    fn read(text: &str) -> Result<String, String> {
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) { Err(String::new()) } else { Ok(text.into()) }
    }

    fn show(value: &String) -> String {
        value.clone()
    }
}

/// What nobody is shown again.
pub struct Hidden;

/// Written in place of a secret that is there.
pub(super) const HIDDEN: &str = "(hidden)";

impl Codec for Hidden {
    type Value = Secret;
    const EXPECTS: &'static str = "a secret without spaces, or nothing; the environment is a better place than a flag";
    const SHORT: &'static str = "SECRET";

    fn read(text: &str) -> Result<Secret, String> {
        if text == HIDDEN {
            return Err("that is what is shown in place of a secret".to_owned());
        }
        Text::read(text).map(Secret)
    }

    fn show(value: &Secret) -> String {
        if value.0.is_empty() { String::new() } else { HIDDEN.to_owned() }
    }
}

/// Where blocks are kept.
pub struct StoreUrl;

impl Codec for StoreUrl {
    type Value = String;
    const EXPECTS: &'static str =
        "a directory, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, or nothing";
    const SHORT: &'static str = "URL";

    fn read(text: &str) -> Result<String, String> {
        if !text.is_empty() {
            Place::parse(text)?;
        }
        Ok(text.to_owned())
    }

    fn show(value: &String) -> String {
        value.clone()
    }
}

/// What an object store does with bytes at rest.
pub struct Sse;

impl Sse {
    const ALL: [(&'static str, Encryption); 5] = [
        ("bucket", Encryption::Bucket),
        ("store", Encryption::Store),
        ("kms", Encryption::Kms),
        ("kms-twice", Encryption::KmsTwice),
        ("customer", Encryption::Customer),
    ];
}

impl Codec for Sse {
    type Value = Encryption;
    const EXPECTS: &'static str = "bucket, store, kms, kms-twice or customer";
    const SHORT: &'static str = "HOW";

    fn read(text: &str) -> Result<Encryption, String> {
        Self::ALL.iter().find(|(word, _)| *word == text).map(|(_, how)| *how).ok_or_else(String::new)
    }

    fn show(value: &Encryption) -> String {
        Self::ALL.iter().find(|(_, how)| how == value).map_or("", |(word, _)| word).to_owned()
    }
}

/// What an object store holds uploads against.
pub struct Sums;

impl Sums {
    const ALL: [(&'static str, Checksum); 3] =
        [("signature", Checksum::Signature), ("sha256", Checksum::Sha256), ("crc64nvme", Checksum::Crc64)];
}

impl Codec for Sums {
    type Value = Checksum;
    const EXPECTS: &'static str = "signature, sha256 or crc64nvme";
    const SHORT: &'static str = "SUM";

    fn read(text: &str) -> Result<Checksum, String> {
        Self::ALL.iter().find(|(word, _)| *word == text).map(|(_, sum)| *sum).ok_or_else(String::new)
    }

    fn show(value: &Checksum) -> String {
        Self::ALL.iter().find(|(_, sum)| sum == value).map_or("", |(word, _)| word).to_owned()
    }
}

/// How often something is tried again.
pub struct Tries;

impl Codec for Tries {
    type Value = usize;
    const EXPECTS: &'static str = "a whole number from 0 to 100";
    const SHORT: &'static str = "NUMBER";

    fn read(text: &str) -> Result<usize, String> {
        text.parse().ok().filter(|n| (0..=100).contains(n)).ok_or_else(String::new)
    }

    fn show(value: &usize) -> String {
        value.to_string()
    }
}

/// Which events are logged.
pub struct Filter;

impl Codec for Filter {
    type Value = String;
    const EXPECTS: &'static str = "error, warn, info, debug or trace, or filters such as info,engram_node::read=debug";
    const SHORT: &'static str = "LEVEL";

    fn read(text: &str) -> Result<String, String> {
        use tracing_subscriber::filter::{Directive, LevelFilter};
        let part = |part: &str| {
            let part = part.trim();
            // A word alone would be taken for the name of a module, and a misspelt level would silence the log.
            if !part.contains(['=', ':', '[']) && part.parse::<LevelFilter>().is_err() {
                return Err(format!("{part:?} is no level"));
            }
            part.parse::<Directive>().map_err(|error| error.to_string())
        };
        text.split(',').try_for_each(|p| part(p).map(drop))?;
        Ok(text.to_owned())
    }

    fn show(value: &String) -> String {
        value.clone()
    }
}

/// Text or JSON.
pub struct Form;

impl Codec for Form {
    type Value = LogFormat;
    const EXPECTS: &'static str = "text or json";
    const SHORT: &'static str = "FORMAT";

    fn read(text: &str) -> Result<LogFormat, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(String::new()),
        }
    }

    fn show(value: &LogFormat) -> String {
        match value {
            LogFormat::Text => "text".to_owned(),
            LogFormat::Json => "json".to_owned(),
        }
    }
}
