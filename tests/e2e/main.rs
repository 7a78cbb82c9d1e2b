//! End-to-end tests, one module a story: what a user sees, run by the program or through the library.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod bad_back_ends;
mod bad_input;
mod bench_trace;
mod bill;
mod containment;
mod edu;
mod explore;
mod faults;
mod front_end;
mod hostile_device;
mod inspect;
mod ledger;
mod machines;
mod matrix;
mod net;
mod polled;
mod probe_unwinds;
mod qtest;
mod readme;
mod schedules;
mod scull;
mod seeded_bugs;
mod shows_1_low_zone;
mod shows_2_copy_image;
mod shows_3_digests;
mod shows_4_crimes;
mod shows_5_ui;
mod shows_6_many_queues;
mod shows_7_recycling;
mod shows_7_teardown;
mod shrink;
mod stopped;
mod tasks;
mod teardown_order;
mod threads;
mod tour;
mod trace_cost;
mod watch;
mod weak;
mod worlds;
