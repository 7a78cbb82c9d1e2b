//! Altered constants: one number of the model wrong on purpose, to see whether the measured tables tell.
//!
//! Where the model reckons with such a number it says `altered!(NAME)`, which is `NAME` and nothing else unless the build
//! has `--cfg lowzone_mutants`. Then the environment variable `LOWZONE_ALTERED` says, once for the whole process, which
//! one is what `CONSTANTS` makes of it. Neighbours: the golden tables' runner, run once for each of them. Left out:
//! numbers that types are made of, two at once.

/// A constant of the model, or what the environment makes of it.
#[cfg(not(lowzone_mutants))]
macro_rules! altered {
    ($name:ident) => {
        $name
    };
}

#[cfg(lowzone_mutants)]
macro_rules! altered {
    ($name:ident) => {
        crate::altered::of(stringify!($name), $name)
    };
}

/// The environment variable that names the constant.
#[cfg(lowzone_mutants)]
const VARIABLE: &str = "LOWZONE_ALTERED";

/// Each constant that can be altered, and what it is then.
#[cfg(lowzone_mutants)]
const CONSTANTS: [(&str, u64); 15] = [
    ("ATOMIC_SHARE", 3),
    ("BATCH_MOST", 512),
    ("CACHE_LINE", 128),
    // Of the classes, 192.
    ("CLASSES", 224),
    ("FIRST_UNIT", 2 << 20),
    ("GUARD", 8192),
    ("KMALLOC_MAX_SIZE", 2 << 20),
    ("LOW_SHARE", 3),
    ("MAX_ORDER", 9),
    ("MAX_SLAB_ORDER", 2),
    // Of zone DMA.
    ("RESERVE_RATIO", 128),
    ("RETRY_NS", 4_000_000_000),
    ("SCALE_FACTOR", 11),
    ("SLOT_SHIFT", 12),
    ("TRACK", 16),
];

/// A constant's value in this process.
#[cfg(lowzone_mutants)]
pub(crate) fn of<T: Alter>(name: &str, value: T) -> T {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<Option<(&str, u64)>> = OnceLock::new();
    let read = || {
        let named = std::env::var(VARIABLE).ok()?;
        CONSTANTS.into_iter().find(|(name, _)| *name == named)
    };
    match CHOSEN.get_or_init(read) {
        Some((chosen, wrong)) if *chosen == name => value.altered(*wrong),
        _ => value,
    }
}

/// What kinds of constants can be altered.
#[cfg(lowzone_mutants)]
pub(crate) trait Alter {
    /// The wrong value.
    fn altered(self, wrong: u64) -> Self;
}

#[cfg(lowzone_mutants)]
macro_rules! numbers {
    ($($number:ty)*) => {
        $(impl Alter for $number {
            fn altered(self, wrong: u64) -> Self {
                Self::try_from(wrong).unwrap_or(self)
            }
        })*
    };
}

#[cfg(lowzone_mutants)]
numbers! { u8 u32 u64 usize }

#[cfg(lowzone_mutants)]
impl Alter for [u16; 13] {
    fn altered(self, wrong: u64) -> Self {
        self.map(|class| if class == 192 { u16::try_from(wrong).unwrap_or(class) } else { class })
    }
}

#[cfg(lowzone_mutants)]
impl Alter for [u64; 4] {
    fn altered(mut self, wrong: u64) -> Self {
        self[0] = wrong;
        self
    }
}
