//! The wire format of protocol buffers, as far as it is written here: varints, 64-bit numbers, and what has a length.
//!
//! Neighbours: `perfetto` knows the fields. Left out: reading, packed fields, groups.

/// Fields of one message, one behind the other.
#[derive(Debug, Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    fn raw(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(low(value) | 0x80);
            value >>= 7;
        }
        self.0.push(low(value));
    }

    fn key(&mut self, field: u32, wire: u64) {
        self.raw(u64::from(field) << 3 | wire);
    }

    /// `uint32`, `uint64`, `bool`, an enum, or an `int64` that is not negative.
    pub(super) fn number(&mut self, field: u32, value: u64) -> &mut Self {
        self.key(field, 0);
        self.raw(value);
        self
    }

    /// An `int64`.
    pub(super) fn signed(&mut self, field: u32, value: i64) -> &mut Self {
        self.number(field, value.cast_unsigned())
    }

    /// `fixed64`.
    pub(super) fn fixed(&mut self, field: u32, value: u64) -> &mut Self {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// `string` or `bytes`.
    pub(super) fn text(&mut self, field: u32, text: &str) -> &mut Self {
        self.append(field, text.as_bytes())
    }

    /// A message that was made apart, or several of one field.
    pub(super) fn append(&mut self, field: u32, bytes: &[u8]) -> &mut Self {
        self.key(field, 2);
        self.raw(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    /// A message in this one.
    pub(super) fn nested(&mut self, field: u32, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.key(field, 2);
        let begin = self.0.len();
        fill(self);
        let mut length = Self::default();
        length.raw((self.0.len() - begin) as u64);
        self.0.splice(begin..begin, length.0);
        self
    }
}

fn low(value: u64) -> u8 {
    let [byte, ..] = (value & 0x7f).to_le_bytes();
    byte
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn messages_are_the_bytes_of_the_specification() {
        let mut message = Message::default();
        // The examples of protobuf.dev/programming-guides/encoding: 150 in field 1, "testing" in field 2.
        message.number(1, 150).text(2, "testing").nested(3, |inner| {
            inner.number(1, 150);
        });
        assert_eq!(message.bytes(), b"\x08\x96\x01\x12\x07testing\x1a\x03\x08\x96\x01");
        message.clear();
        message.signed(1, -2).fixed(16, 1);
        assert_eq!(
            message.bytes(),
            b"\x08\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01\x81\x01\x01\x00\x00\x00\x00\x00\x00\x00"
        );
    }

    /// A varint read as the specification says.
    fn read(bytes: &[u8]) -> Option<(u64, usize)> {
        let mut value = 0_u64;
        for (index, &byte) in bytes.iter().enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                return Some((value, index + 1));
            }
        }
        None
    }

    proptest! {
        #[test]
        fn a_varint_is_as_short_as_it_can_be(value in any::<u64>(), shift in 0_u32..64) {
            let value = value >> shift;
            let mut message = Message::default();
            message.raw(value);
            let length = (64 - value.leading_zeros()).max(1).div_ceil(7);
            prop_assert_eq!(read(message.bytes()), Some((value, length as usize)));
        }

        #[test]
        fn a_nested_message_has_the_length_of_what_is_in_it(text in ".{0,300}") {
            let mut message = Message::default();
            message.nested(1, |inner| { inner.text(2, &text); });
            let (length, at) = read(&message.bytes()[1..]).unwrap();
            prop_assert_eq!(usize::try_from(length).unwrap(), message.bytes().len() - 1 - at);
            prop_assert!(message.bytes().ends_with(text.as_bytes()));
        }
    }
}
