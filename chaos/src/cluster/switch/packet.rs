//! One packet as bytes: whom it is from and for, which connection it belongs to, what breaks it.
//!
//! Nothing that is read from a packet is trusted: what is too short or no IPv4 is nobody's.
//!
//! Source: RFC 791 §3.1 (IPv4), RFC 9293 §3.1 and §3.10.7 (TCP, when a reset is believed), RFC 1071 (the checksum of both).

use rand::RngExt;
use rand::rngs::StdRng;
use std::net::Ipv4Addr;

/// Bits next to each other that are turned at most. A sum of 16 bits sees every burst that is shorter than it.
///
/// Source: Stone, Partridge, "When the CRC and TCP Checksum Disagree" (SIGCOMM 2000) §2.
const BURST_BITS: usize = 15;
const IP_BYTES: usize = 20;
const TCP_BYTES: usize = 20;
const PROTOCOL_TCP: u8 = 6;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// A connection: both ends, the lesser first.
pub(super) type Flow = ((Ipv4Addr, u16), (Ipv4Addr, u16));

/// What a packet says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) from: Ipv4Addr,
    pub(super) to: Ipv4Addr,
    pub(super) tcp: Option<Tcp>,
}

/// What a packet of a connection says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tcp {
    from_port: u16,
    to_port: u16,
    sequence: u32,
    acknowledged: u32,
    flags: u8,
    /// Bytes of what is carried.
    pub(super) carries: usize,
}

impl Head {
    /// `None`: no IPv4.
    pub(super) fn of(packet: &[u8]) -> Option<Self> {
        let ip_bytes = usize::from(packet.first()? & 15) * 4;
        if packet[0] >> 4 != 4 || ip_bytes < IP_BYTES || packet.len() < ip_bytes {
            return None;
        }
        let (from, to) = (u32_at(packet, 12)?.into(), u32_at(packet, 16)?.into());
        // Of a packet in pieces only the first has ports; nodes send none in pieces.
        let whole = u16_at(packet, 6)? & 0x3fff == 0;
        let tcp = if packet[9] == PROTOCOL_TCP && whole { Tcp::of(&packet[ip_bytes..]) } else { None };
        Some(Self { from, to, tcp })
    }

    /// The connection it belongs to, where it is of one.
    pub(super) fn flow(&self) -> Option<Flow> {
        let tcp = self.tcp?;
        let (one, other) = ((self.from, tcp.from_port), (self.to, tcp.to_port));
        Some((one.min(other), one.max(other)))
    }

    /// Two packets that end its connection in its place: for whom it is for, and for whom it is from.
    pub(super) fn resets(&self) -> Option<[Vec<u8>; 2]> {
        let tcp = self.tcp?;
        // Believed are resets of just the number that is waited for: what this packet begins with, what its sender has asked for.
        let there = reset((self.from, tcp.from_port), (self.to, tcp.to_port), tcp.sequence, tcp.acknowledged);
        let back = reset((self.to, tcp.to_port), (self.from, tcp.from_port), tcp.acknowledged, tcp.sequence);
        Some([there, back])
    }
}

impl Tcp {
    fn of(segment: &[u8]) -> Option<Self> {
        let bytes = usize::from(segment.get(12)? >> 4) * 4;
        Some(Self {
            from_port: u16_at(segment, 0)?,
            to_port: u16_at(segment, 2)?,
            sequence: u32_at(segment, 4)?,
            acknowledged: u32_at(segment, 8)?,
            flags: *segment.get(13)?,
            carries: segment.len().checked_sub(bytes.max(TCP_BYTES))?,
        })
    }

    /// Whether it begins a connection.
    pub(super) fn begins(&self) -> bool {
        self.flags & (SYN | ACK) == SYN
    }

    /// Whether it ends one at once.
    pub(super) fn resets(&self) -> bool {
        self.flags & RST != 0
    }
}

/// Turns some bits that are next to each other, in a way that checksums see.
pub(super) fn turn(packet: &mut [u8], chance: &mut StdRng) {
    let bits = packet.len() * 8;
    if bits == 0 {
        return;
    }
    let first = chance.random_range(0..bits);
    let last = (first + chance.random_range(0..BURST_BITS)).min(bits - 1);
    for bit in first..=last {
        // Both ends of a burst are turned, else it would be none.
        if bit == first || bit == last || chance.random_bool(0.5) {
            packet[bit / 8] ^= 0x80 >> (bit % 8);
        }
    }
}

fn reset(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), sequence: u32, acknowledged: u32) -> Vec<u8> {
    let bytes = IP_BYTES + TCP_BYTES;
    let mut packet = vec![0; bytes];
    let mut put = |at: usize, value: &[u8]| packet[at..at + value.len()].copy_from_slice(value);
    // Version 4, a head of 5 words; not to be cut into pieces; 64 hops.
    put(0, &[0x45]);
    put(2, &u16::try_from(bytes).unwrap_or(0).to_be_bytes());
    put(6, &[0x40, 0, 64, PROTOCOL_TCP]);
    put(12, &from.0.octets());
    put(16, &to.0.octets());
    put(20, &from.1.to_be_bytes());
    put(22, &to.1.to_be_bytes());
    put(24, &sequence.to_be_bytes());
    put(28, &acknowledged.to_be_bytes());
    put(32, &[0x50, RST | ACK]);
    let head = !sum(0, &packet[..IP_BYTES]);
    packet[10..12].copy_from_slice(&head.to_be_bytes());
    let whole = !tcp_sum(&packet);
    packet[36..38].copy_from_slice(&whole.to_be_bytes());
    packet
}

/// The sum over a segment and what it is sent in; of one that is whole it is all ones.
fn tcp_sum(packet: &[u8]) -> u16 {
    let segment = &packet[IP_BYTES..];
    let length = u16::try_from(segment.len()).unwrap_or(0);
    let addresses = sum(length, &packet[12..20]);
    sum(sum(addresses, &[0, PROTOCOL_TCP]), segment)
}

/// The sum of words in ones' complement, without the last turning of its bits.
fn sum(begin: u16, bytes: &[u8]) -> u16 {
    bytes.chunks(2).fold(begin, |sum, pair| {
        let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        let (sum, carried) = sum.overflowing_add(word);
        // What is carried out at the top comes in at the bottom; it cannot be carried twice.
        sum + u16::from(carried)
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
pub(super) mod tests {
    //! Goal: packets are read as they are, resets are what a kernel believes, turned bits are seen by the sums.

    use super::*;
    use rand::SeedableRng;

    pub(in super::super) const ONE: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 18, 0, 1), 7001);
    pub(in super::super) const OTHER: (Ipv4Addr, u16) = (Ipv4Addr::new(198, 18, 0, 2), 40_000);

    /// A packet of a connection, with sums as they must be.
    pub(in super::super) fn segment(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), flags: u8, body: &[u8]) -> Vec<u8> {
        let mut packet = [reset(from, to, 100, 200), body.to_vec()].concat();
        let length = u16::try_from(packet.len()).unwrap();
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        packet[33] = flags;
        packet[10..12].fill(0);
        packet[36..38].fill(0);
        let head = !sum(0, &packet[..IP_BYTES]);
        packet[10..12].copy_from_slice(&head.to_be_bytes());
        let whole = !tcp_sum(&packet);
        packet[36..38].copy_from_slice(&whole.to_be_bytes());
        packet
    }

    /// Bytes of chance; every second time those of a packet, some of them turned, its end missing.
    pub(in super::super) fn garbage(round: u32, chance: &mut StdRng) -> Vec<u8> {
        if round.is_multiple_of(2) {
            return (0..chance.random_range(0..90)).map(|_| chance.random()).collect();
        }
        let mut packet = segment(OTHER, ONE, chance.random(), &[0; 40]);
        for _ in 0..chance.random_range(0..4) {
            // Mostly in the first bytes of either head, where lengths, protocol and flags are.
            let at = [0, 2, 6, 9, 32, chance.random_range(0..packet.len())][chance.random_range(0..6)];
            packet[at] = chance.random();
        }
        packet.truncate(chance.random_range(0..=packet.len() * 2));
        packet
    }

    fn is_whole(packet: &[u8]) -> bool {
        sum(0, &packet[..IP_BYTES]) == u16::MAX && tcp_sum(packet) == u16::MAX
    }

    #[test]
    fn a_packet_says_whose_it_is() {
        let packet = segment(OTHER, ONE, SYN, b"12345");
        let head = Head::of(&packet).unwrap();
        let tcp = head.tcp.unwrap();
        assert!(is_whole(&packet) && head.from == OTHER.0 && head.to == ONE.0 && tcp.carries == 5 && tcp.begins());
        let back = Head::of(&segment(ONE, OTHER, SYN | ACK, b"")).unwrap();
        assert!(back.flow() == head.flow() && head.flow() == Some((ONE, OTHER)) && !back.tcp.unwrap().begins());
        assert_eq!(Head::of(&[0x60; 60]), None, "not ours");
        // Nothing that is cut off anywhere is taken for more than it is.
        for bytes in 0..packet.len() {
            let short = Head::of(&packet[..bytes]).and_then(|head| head.tcp);
            assert!(short.is_none_or(|tcp| bytes >= 40 && tcp.carries == bytes - 40));
        }
    }

    #[test]
    fn bytes_of_any_kind_are_read_and_never_believed() {
        let (mut chance, mut read, mut of_tcp) = (StdRng::seed_from_u64(3), 0, 0);
        for round in 0..20_000 {
            let mut packet = garbage(round, &mut chance);
            let Some(head) = Head::of(&packet) else { continue };
            read += 1;
            assert!(packet.len() >= IP_BYTES && head.flow().is_some() == head.tcp.is_some());
            assert!(head.tcp.is_none_or(|tcp| tcp.carries <= packet.len() - IP_BYTES - TCP_BYTES));
            of_tcp += u64::from(head.tcp.is_some());
            // Whatever it said, what is made of it is whole, and goes to just the two that it named.
            for reset in head.resets().into_iter().flatten() {
                let told = Head::of(&reset).unwrap();
                assert!(is_whole(&reset) && told.flow() == head.flow() && told.tcp.unwrap().resets());
            }
            turn(&mut packet, &mut chance);
        }
        assert!(read > 2_000 && of_tcp > 1_000, "{read} {of_tcp}");
    }

    #[test]
    fn a_reset_names_what_each_end_waits_for() {
        let [there, back] = Head::of(&segment(OTHER, ONE, ACK, b"x")).unwrap().resets().unwrap();
        let (to, from) = (Head::of(&there).unwrap(), Head::of(&back).unwrap());
        assert!(is_whole(&there) && is_whole(&back) && to.to == ONE.0 && from.to == OTHER.0);
        let (to, from) = (to.tcp.unwrap(), from.tcp.unwrap());
        assert!(to.resets() && from.resets() && to.sequence == 100 && from.sequence == 200);
    }

    #[test]
    fn what_is_turned_is_always_seen() {
        let mut chance = StdRng::seed_from_u64(1);
        let body: Vec<u8> = (0..=255).collect();
        for _ in 0..20_000 {
            let mut packet = segment(OTHER, ONE, ACK, &body);
            let before = packet.clone();
            turn(&mut packet, &mut chance);
            assert!(packet != before && !is_whole(&packet));
        }
    }
}
