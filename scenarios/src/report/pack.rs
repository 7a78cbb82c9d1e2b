//! The page itself: markup, style, script and the compressed data, in one file that needs nothing else.
//!
//! The page's policy allows the one style and the one script that are in it, by their hashes, and nothing from anywhere.
//! The data is no script: it can't be run, and as base64 it can't end its element. Neighbours: `page/*`, which is what
//! is put in; `cli`, which writes the file.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use sha2::{Digest, Sha256};

/// The script, in the order its parts build on each other.
const SCRIPT: [&str; 10] = [
    include_str!("page/decode.js"),
    include_str!("page/dom.js"),
    include_str!("page/model.js"),
    include_str!("page/story.js"),
    include_str!("page/timeline.js"),
    include_str!("page/draw.js"),
    include_str!("page/bars.js"),
    include_str!("page/plots.js"),
    include_str!("page/campaign.js"),
    include_str!("page/page.js"),
];
const STYLE: &str = include_str!("page/page.css");
const MARKUP: &str = include_str!("page/page.html");
/// How hard deflate tries; beyond it pages get hardly smaller.
const LEVEL: u8 = 9;

fn policy_hash(text: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(Sha256::digest(text.as_bytes())))
}

/// The page of what `meta` says, and the columns that it names.
pub(super) fn page<T: Serialize>(meta: &T, columns: &[u8]) -> Result<String, serde_json::Error> {
    let meta = serde_json::to_vec(meta)?;
    let mut data = Vec::with_capacity(4 + meta.len() + columns.len());
    data.extend(u32::try_from(meta.len()).unwrap_or(u32::MAX).to_le_bytes());
    data.extend_from_slice(&meta);
    data.extend_from_slice(columns);
    let data = STANDARD.encode(miniz_oxide::deflate::compress_to_vec(&data, LEVEL));
    let script = format!("'use strict';\n(() => {{\n{}\n}})();\n", SCRIPT.join("\n"));
    let policy = format!(
        "default-src 'none'; script-src {}; style-src {}; base-uri 'none'; form-action 'none'",
        policy_hash(&script),
        policy_hash(STYLE)
    );
    // The parts come in the order of the markup, so that nothing in one is taken for a place for the next.
    let mut page = String::with_capacity(MARKUP.len() + STYLE.len() + script.len() + data.len());
    let mut rest = MARKUP;
    for (place, part) in [("{policy}", &*policy), ("{style}", STYLE), ("{data}", &*data), ("{script}", &*script)] {
        let (before, after) = rest.split_once(place).unwrap_or((rest, ""));
        page.push_str(before);
        page.push_str(part);
        rest = after;
    }
    page.push_str(rest);
    Ok(page)
}
