//! Networks that are cut, slow, narrow or break.

use super::{Scenario, THREE, UNSLOWED};
use crate::cluster::Kit;
use crate::nemesis::{Act, Pace, Shape};

pub(super) static NETWORK: &[Scenario] = &[
    Scenario {
        name: "isolate-node",
        number: "10, 14",
        fault: "one node cut off from the others, clients still reach it",
        says: "it acknowledges nothing alone and answers nothing old",
        act: Act::Network(Shape::IsolateNode),
        ..THREE
    },
    Scenario {
        name: "isolate-leader",
        number: "10b",
        fault: "the metadata leader cut off from the others",
        says: "it acknowledges nothing alone and answers nothing old; the others elect another",
        act: Act::Network(Shape::IsolateLeader),
        smoke: true,
        ..THREE
    },
    Scenario {
        name: "shatter",
        number: "11",
        fault: "every node cut off from every other",
        says: "no write succeeds without a majority",
        act: Act::Network(Shape::Shatter),
        ..THREE
    },
    Scenario {
        name: "ring",
        number: "12",
        fault: "five nodes, each sees a majority, no two the same",
        nodes: 5,
        zones: 5,
        act: Act::Network(Shape::Ring),
        pace: Pace { rounds: 2, hold_ms: 8_000, rest_ms: 4_000 },
        ..THREE
    },
    Scenario {
        name: "halves",
        number: "12b",
        fault: "five nodes cut into two and three",
        nodes: 5,
        zones: 5,
        act: Act::Network(Shape::Halves),
        pace: Pace { rounds: 2, hold_ms: 8_000, rest_ms: 4_000 },
        ..THREE
    },
    Scenario {
        name: "bridge",
        number: "13",
        fault: "two nodes do not see each other, both see the third",
        act: Act::Network(Shape::Bridge),
        ..THREE
    },
    Scenario {
        name: "one-way",
        number: "13b",
        fault: "what one node sends does not arrive, what is sent to it does",
        act: Act::Network(Shape::OneWay),
        ..THREE
    },
    Scenario {
        name: "slow-net",
        number: "15",
        fault: "every line between nodes late by 50 to 100 ms each way",
        act: Act::Network(Shape::Slow(50)),
        ..THREE
    },
    Scenario {
        name: "lossy-net",
        number: "15b",
        fault: "connections between nodes break again and again",
        act: Act::Network(Shape::Lossy),
        ..THREE
    },
    Scenario {
        name: "narrow-net",
        number: "15c",
        fault: "the lines of one node carry 1 Mbit/s",
        says: "a slow zone does not slow acknowledgements down",
        promise: UNSLOWED,
        act: Act::Network(Shape::Narrow(125_000)),
        ..THREE
    },
    Scenario {
        name: "lost-answers",
        number: "33",
        fault: "one in five answers to clients is lost after the work was done; they ask again, up to three times and mostly elsewhere",
        says: "what was written twice or more is there once",
        act: Act::Network(Shape::LostAnswers(2_000)),
        kit: Kit { fronts: true, ..Kit::NOTHING },
        pace: Pace { rounds: 2, hold_ms: 10_000, rest_ms: 4_000 },
        ..THREE
    },
    Scenario {
        name: "cut-clients",
        number: "14b",
        fault: "clients reach one node only, and that one reaches no other",
        says: "it acknowledges nothing, and answers nothing old",
        act: Act::Network(Shape::CutClients),
        ..THREE
    },
    Scenario {
        name: "packet-loss",
        number: "15d",
        fault: "5 to 20 % of packets each way are lost: to and from one node, then between all",
        act: Act::Network(Shape::Loss),
        pace: Pace { rounds: 4, hold_ms: 5_000, rest_ms: 3_000 },
        ..THREE
    },
    Scenario {
        name: "packet-disorder",
        number: "15e",
        fault: "5 to 30 % of packets between nodes come twice, as many after later ones",
        act: Act::Network(Shape::Disorder),
        ..THREE
    },
    Scenario {
        name: "packet-rot",
        number: "15f",
        fault: "bits of 1 to 5 % of packets are turned, between nodes and between them and clients",
        says: "nothing of it is believed: nothing acknowledged is lost; no wrong answer",
        act: Act::Network(Shape::Rot),
        ..THREE
    },
];
