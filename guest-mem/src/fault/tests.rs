//! Tests of injectors and their text: the vectors of the rules, the order of the tests, chance, and bad input.

use proptest::prelude::*;

use super::*;
use crate::gfp::{__GFP_NOFAIL, __GFP_NOWARN, GFP_ATOMIC, GFP_HIGHUSER, GFP_KERNEL};

/// An injector of mappings: no mask, order or cache is in the way.
fn certain(interval: u64, times: i64, space: i64) -> FaultAttr {
    FaultAttr { probability: 100, interval, times, space, ..FaultAttr::new(Class::Map) }
}

fn map(size: u64) -> Request {
    Request::new(Class::Map, size)
}

/// `F` for each request that fails, `.` for each that passes.
fn pattern(attr: &mut FaultAttr, request: &Request, calls: usize) -> String {
    (0..calls).map(|_| if attr.should_fail(request, &mut || 0) { 'F' } else { '.' }).collect()
}

#[test]
fn vectors_of_should_fail() {
    assert_eq!(pattern(&mut certain(3, 2, 0), &map(1), 12), "..F..F......");
    let mut spaced = certain(1, 1, 100);
    assert!(!spaced.should_fail(&map(40), &mut || 0));
    assert_eq!(spaced.space, 60);
    assert!(!spaced.should_fail(&map(40), &mut || 0));
    assert_eq!(spaced.space, 20);
    assert!(spaced.should_fail(&map(40), &mut || 0));
    assert_eq!((spaced.space, spaced.times), (20, 0));
    assert_eq!(pattern(&mut certain(2, -1, 0), &map(1), 8), ".F.F.F.F");
}

#[test]
fn earlier_tests_move_no_counter_of_later_ones() {
    let mut spent = certain(2, 0, 100);
    assert_eq!(pattern(&mut spent, &map(8), 3), "...");
    assert_eq!((spent.space, spent.count), (100, 0));
    let mut filtered = FaultAttr { task_filter: true, ..certain(2, 1, 100) };
    assert_eq!(pattern(&mut filtered, &map(8), 3), "...");
    assert_eq!((filtered.space, filtered.count), (100, 0));
    let mut spaced = certain(2, 1, 100);
    assert_eq!(pattern(&mut spaced, &map(30), 3), "...");
    assert_eq!((spaced.space, spaced.count, spaced.times), (10, 0, 1));
    let mut draws = 0;
    let mut rare = certain(3, 1, 0);
    for _ in 0..3 {
        rare.should_fail(&map(1), &mut || {
            draws += 1;
            u32::MAX
        });
    }
    assert_eq!((draws, rare.times), (1, 0));
}

#[test]
fn what_is_spared_moves_nothing() {
    let slab = |gfp| Request::slab(64, gfp, Some("kmalloc-64"));
    let linux = |class| FaultAttr { probability: 100, times: -1, space: 100, ..FaultAttr::new(class) };
    let only = |name: &str| CacheFilter::Only(vec!["other".into(), name.into()]);
    let cases = [
        (linux(Class::Slab), slab(GFP_KERNEL), 0),
        (linux(Class::Slab), slab(GFP_ATOMIC), 1),
        (linux(Class::Slab), slab(GFP_ATOMIC | __GFP_NOFAIL), 0),
        (FaultAttr { cache_filter: only("kmalloc"), ..linux(Class::Slab) }, slab(GFP_ATOMIC), 0),
        (FaultAttr { cache_filter: only("kmalloc-64"), ..linux(Class::Slab) }, slab(GFP_ATOMIC), 1),
        (FaultAttr { cache_filter: only("x"), ..linux(Class::Slab) }, Request::slab(64, GFP_ATOMIC, None), 0),
        (linux(Class::Page), Request::pages(0, GFP_ATOMIC), 0),
        (linux(Class::Page), Request::pages(1, GFP_ATOMIC), 1),
        (FaultAttr { ignore_gfp_wait: false, ..linux(Class::Page) }, Request::pages(1, GFP_HIGHUSER), 0),
        (linux(Class::Coherent), Request { class: Class::Coherent, ..Request::pages(0, GFP_KERNEL) }, 1),
    ];
    for (mut attr, request, eligible) in cases {
        assert!(!attr.should_fail(&request, &mut || 0), "space lets one pass: {request:?}");
        let space = if eligible == 1 { 100 - i64::try_from(request.size).unwrap() } else { 100 };
        assert_eq!((attr.tally().eligible, attr.space), (eligible, space), "{request:?}");
        assert_eq!(attr.tally().requests, 1);
    }
}

#[test]
fn another_class_is_not_its_business() {
    let mut attr = certain(1, -1, 0);
    assert!(!attr.should_fail(&Request::new(Class::Ioremap, 1), &mut || 0));
    assert_eq!(attr.tally(), Tally::default());
}

#[test]
fn fail_nth_overrides_the_attributes_for_tasks() {
    let mut attr = FaultAttr { fail_nth: 2, task_filter: true, times: 0, space: 50, ..FaultAttr::new(Class::Map) };
    assert!(!attr.should_fail(&map(1).by(Caller::Interrupt), &mut || 0));
    assert_eq!(attr.fail_nth, 2);
    assert_eq!(pattern(&mut attr, &map(1), 4), ".F..");
    assert_eq!((attr.fail_nth, attr.times, attr.space), (0, 0, 50));
    let mut counted = FaultAttr { fail_nth: 1, ..certain(1, 2, 0) };
    assert_eq!(pattern(&mut counted, &map(1), 4), "FF..", "a failure by fail-nth counts in times");
}

#[test]
fn only_marked_tasks_fail_under_the_filter() {
    let mut attr = FaultAttr { task_filter: true, ..certain(1, -1, 0) };
    let by = [Caller::Task, Caller::MarkedTask, Caller::Interrupt];
    assert_eq!(by.map(|caller| attr.should_fail(&map(1).by(caller), &mut || 0)), [false, true, false]);
    let mut open = certain(1, -1, 0);
    assert_eq!(by.map(|caller| open.should_fail(&map(1).by(caller), &mut || 0)), [true; 3]);
}

#[test]
fn chance_is_percent() {
    for probability in [1, 7, 50, 99, 100, 150] {
        let mut attr = FaultAttr { probability, ..certain(1, -1, 0) };
        let draws = (0..100_u64).map(|at| u32::try_from((at << 32) / 100 + 1).unwrap());
        let failed = draws.filter(|&bits| attr.should_fail(&map(1), &mut || bits)).count();
        assert_eq!(failed, usize::try_from(probability.min(100)).unwrap());
    }
    assert_eq!((percent(0), percent(u32::MAX)), (0, 99));
}

#[test]
fn messages_say_what_linux_says() {
    let text = |attr: &mut FaultAttr, request: &Request| {
        let forced = attr.inject(request, &mut || 0).unwrap();
        forced.message.map(|message| (message.to_string(), message.stack))
    };
    let slab = |gfp| Request::slab(64, gfp, None);
    let mut attr = FaultAttr { probability: 100, times: -1, ..FaultAttr::new(Class::Slab) };
    let said = "FAULT_INJECTION: forcing a failure.\nname failslab, interval 1, probability 100, space 0, times -1";
    assert_eq!(text(&mut attr, &slab(GFP_ATOMIC)), Some((said.into(), true)));
    assert_eq!(text(&mut attr, &slab(GFP_ATOMIC | __GFP_NOWARN)), None);
    attr.verbose = 1;
    assert_eq!(text(&mut attr, &slab(GFP_ATOMIC)), Some((said.into(), false)));
    attr.verbose = 0;
    assert_eq!(text(&mut attr, &slab(GFP_ATOMIC)), None);
    assert_eq!((attr.times, attr.tally().forced), (-1, 4));
}

#[test]
fn extreme_numbers_break_nothing() {
    let mut attr = FaultAttr { count: u64::MAX, ..certain(u64::MAX, i64::MIN, i64::MAX) };
    assert!(attr.should_fail(&map(u64::MAX), &mut || u32::MAX));
    assert_eq!((attr.count, attr.times, attr.space), (0, i64::MIN, i64::MAX));
    assert_eq!(Request::pages(u8::MAX, GFP_KERNEL).size, u64::MAX);
}

#[test]
fn coherent_memory_is_pages_too() {
    let coherent = Request { class: Class::Coherent, ..Request::pages(0, GFP_ATOMIC) };
    let tally = |spec: &FaultSpec| [Class::Coherent, Class::Page].map(|class| spec.attr(class).map(FaultAttr::tally));
    let mut spec = FaultSpec::parse("page:probability=100,times=-1,min-order=0;coherent:probability=100").unwrap();
    assert_eq!([0; 3].map(|bits| spec.should_fail(&coherent, &mut || bits)), [true; 3]);
    let [own, pages] = tally(&spec).map(Option::unwrap);
    assert_eq!((own.requests, own.forced, pages.requests, pages.forced), (3, 1, 2, 2), "its own injector comes first");
    assert!(
        !FaultSpec::parse("coherent:probability=100").unwrap().should_fail(&Request::pages(0, GFP_ATOMIC), &mut || 0)
    );
}

#[test]
fn a_spec_is_what_it_says() {
    let text = "slab:probability=100,interval=2,times=3,space=4,verbose=1,task-filter=Y,ignore-gfp-wait=N,\
                cache-filter=kmalloc-64+dma kmalloc;page:ignore-gfp-highmem=N,min-order=0,fail-nth=7";
    let spec = FaultSpec::parse(text).unwrap();
    let slab = FaultAttr {
        probability: 100,
        interval: 2,
        times: 3,
        space: 4,
        verbose: 1,
        task_filter: true,
        ignore_gfp_wait: false,
        cache_filter: CacheFilter::Only(vec!["kmalloc-64".into(), "dma kmalloc".into()]),
        ..FaultAttr::new(Class::Slab)
    };
    let page = FaultAttr { ignore_gfp_highmem: false, min_order: 0, fail_nth: 7, ..FaultAttr::new(Class::Page) };
    assert_eq!(spec.attrs(), [slab.clone(), page.clone()]);
    assert_eq!(spec.to_string(), text);
    assert_eq!(FaultSpec::default().with(FaultAttr::new(Class::Slab)).with(page).with(slab).to_string(), text);
    for class in Class::INJECTABLE {
        let spec: FaultSpec = format!(" {class} : probability = 1 , times = -1 ").parse().unwrap();
        assert_eq!(spec.to_string(), format!("{class}:probability=1,times=-1"));
    }
}

#[test]
fn bad_specs_are_refused_with_text_and_place() {
    let cases = [
        ("", "a class is missing at offset 0"),
        ("map:probability=1; ", "a class is missing at offset 19"),
        (":times=1", "a class is missing at offset 0"),
        ("map:", "an attribute is missing at offset 4"),
        ("map:probability=1,,times=2", "an attribute is missing at offset 18"),
        ("map:=1", "there is no attribute `` (offset 4)"),
        ("swiotlb_slot:times=1", "there is no class `swiotlb_slot` (offset 0)"),
        ("map:times=1;  pgae", "map would never fail (offset 0)"),
        ("map:fail-nth=1;  pgae", "there is no class `pgae` (offset 17)"),
        ("network", "there is no class `network` (offset 0)"),
        ("lock:fail-nth=1", "a lock never fails (offset 0)"),
        ("map:fail-nth=1;map:fail-nth=2", "the class map comes a second time at offset 15"),
        ("map:fail-nth=1,fail-nth=1", "fail-nth is set a second time at offset 15"),
        ("map: propability=1", "there is no attribute `propability` (offset 5)"),
        ("map:probability", "probability has no value (offset 4): write probability=VALUE"),
        ("map:probability= x", "probability takes a whole number from 0 to 4294967295, not `x` (offset 17)"),
        ("map:probability=", "probability takes a whole number from 0 to 4294967295, not `` (offset 16)"),
        ("map:probability=1,times=-2", "times takes a whole number from -1 to 2147483647, not `-2` (offset 24)"),
        ("page:fail-nth=1,min-order=11", "min-order takes a whole number from 0 to 10, not `11` (offset 26)"),
        ("slab:ignore-gfp-wait=maybe", "ignore-gfp-wait takes Y or N, not `maybe` (offset 21)"),
        ("slab:cache-filter=Y", "cache-filter takes N or the names of slab caches joined by +"),
        ("slab:cache-filter=a++b", "cache-filter takes N or the names of slab caches joined by +"),
        ("map:fail-nth=1,min-order=0", "map has no min-order (offset 15)"),
        ("mask:fail-nth=1,space=9", "mask has no space (offset 16)"),
        ("slab", "slab would never fail (offset 0): it needs probability or fail-nth, and times that is not 0"),
        ("slab:probability=100,times=0", "slab would never fail (offset 0)"),
    ];
    for (text, wanted) in cases {
        let error = FaultSpec::parse(text).unwrap_err();
        assert!(error.to_string().starts_with(wanted), "{text}: {error}");
        assert!(error.to_string().contains(&format!("offset {}", error.offset())), "{text}: {error}");
    }
}

/// Texts made of the pieces of right ones, so that most of the parser is reached.
fn nearly_right() -> impl Strategy<Value = String> {
    let words = Class::ALL.map(Class::name).into_iter().chain(Attribute::ALL.map(Attribute::name));
    let more = [":", ":", "=", "=", "=", ",", ";", " ", "1", "100", "-1", "Y", "N", "+", "é", "99999999999999999999"];
    prop::collection::vec(prop::sample::select(words.chain(more).collect::<Vec<_>>()), 0..24)
        .prop_map(|pieces| pieces.concat())
}

fn right() -> impl Strategy<Value = FaultSpec> {
    let part = (
        prop::sample::select(&Class::INJECTABLE[..]),
        (1..200_u32, any::<u64>(), prop_oneof![Just(-1), 1..i64::from(i32::MAX)], 0..i64::from(i32::MAX), 0..=2_u8),
        (any::<[bool; 3]>(), 0..=10_u8, prop::collection::vec("[a-m]{2,6}-[0-9é]{1,3}", 0..3), any::<u32>()),
    );
    let attr = part.prop_map(|(class, (probability, interval, times, space, verbose), (flags, order, names, nth))| {
        let mut attr = FaultAttr { probability, interval, times, space, verbose, ..FaultAttr::new(class) };
        (attr.task_filter, attr.fail_nth) = (flags[0], nth.into());
        let has = |attribute: Attribute| attribute.applies_to(class);
        attr.ignore_gfp_wait = flags[1] && has(Attribute::IgnoreGfpWait);
        attr.ignore_gfp_highmem = flags[2] && has(Attribute::IgnoreGfpHighmem);
        attr.space = if has(Attribute::Space) { attr.space } else { 0 };
        attr.min_order = if has(Attribute::MinOrder) { order } else { 0 };
        if has(Attribute::CacheFilter) && !names.is_empty() {
            attr.cache_filter = CacheFilter::Only(names);
        }
        attr
    });
    prop::collection::vec(attr, 1..9).prop_map(|attrs| attrs.into_iter().fold(FaultSpec::default(), FaultSpec::with))
}

proptest! {
    #[test]
    fn no_text_breaks_the_parser(text in prop_oneof![any::<String>(), nearly_right()]) {
        if let Ok(spec) = FaultSpec::parse(&text) {
            prop_assert_eq!(FaultSpec::parse(&spec.to_string()), Ok(spec));
        }
    }

    #[test]
    fn what_is_displayed_parses_to_the_same(spec in right()) {
        prop_assert_eq!(FaultSpec::parse(&spec.to_string()), Ok(spec));
    }

    #[test]
    fn limits_hold_whatever_chance_says(
        attr in (0..120_u32, 0..5_u64, -1..6_i64, 0..300_i64),
        calls in prop::collection::vec((any::<u32>(), 1..100_u64), 0..80),
    ) {
        let (probability, interval, times, space) = attr;
        let mut attr = FaultAttr { probability, interval, times, space, ..FaultAttr::new(Class::Map) };
        let failed = calls.iter().filter(|(bits, size)| attr.should_fail(&map(*size), &mut || *bits)).count();
        let failed = u64::try_from(failed).unwrap();
        prop_assert_eq!(attr.tally().forced, failed);
        prop_assert_eq!(attr.times, if times < 0 { -1 } else { times - i64::try_from(failed).unwrap() });
        prop_assert!(failed * interval.max(1) <= u64::try_from(calls.len()).unwrap());
        prop_assert!(attr.space >= 0 && attr.space <= space);
    }
}
