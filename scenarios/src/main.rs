//! The program `lowzone`.
#![forbid(unsafe_code)]

lowzone::main!(lowzone::kit::Kit::STOCK);
