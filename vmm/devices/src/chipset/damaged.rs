//! States that come from a broken disk or a hostile peer: refused, or harmless.

use serde_json::Value;

use super::contract::{ChipsetSubject, GuestModel, config};
use super::*;
use crate::testing::contract::Subject;
use crate::testing::{Seeded, Surroundings};

/// Lists longer than this are data; damaging one of their bytes proves nothing.
const DATA: usize = 32;

/// Every number and list of a state, counted in the order of a walk.
fn places(value: &Value) -> usize {
    match value {
        Value::Number(_) => 1,
        Value::Array(items) if items.len() > DATA => 1,
        Value::Array(items) => 1 + items.iter().map(places).sum::<usize>(),
        Value::Object(fields) => fields.values().map(places).sum(),
        _ => 0,
    }
}

/// Damages the `index`th place: another number, or a list of another length.
fn damage(value: &mut Value, index: &mut usize, random: &mut Seeded) {
    let here = matches!(value, Value::Number(_) | Value::Array(_));
    if here && *index == 0 {
        match value {
            Value::Array(items) if random.once_in(2) => {
                items.pop();
            }
            Value::Array(items) => items.extend(items.first().cloned()),
            _ => {
                *value = random
                    .pick(&[0, 1, 255, 256, 65_535, 65_536, u64::from(u32::MAX), u64::MAX])
                    .into()
            }
        }
    }
    *index = index.wrapping_sub(usize::from(here));
    match value {
        Value::Array(items) if items.len() > DATA => {}
        Value::Array(items) => items.iter_mut().for_each(|item| damage(item, index, random)),
        Value::Object(fields) => fields.values_mut().for_each(|field| damage(field, index, random)),
        _ => {}
    }
}

#[test]
fn a_damaged_state_is_refused_or_harmless() {
    let mut refused = 0;
    for seed in 0..600 {
        let mut random = Seeded::new(seed);
        let (mut chipset, mut guest) = (ChipsetSubject::build(), GuestModel::default());
        let mut around = Surroundings::new();
        for _ in 0..40 + random.below(40) {
            ChipsetSubject::step(&mut chipset, &mut guest, &mut around, &mut random);
        }
        let mut state = serde_json::to_value(chipset.save()).expect("a state that serialises");
        let mut index = usize::try_from(random.below(places(&state) as u64)).expect("an index");
        damage(&mut state, &mut index, &mut random);
        let Ok(state) = serde_json::from_value::<ChipsetState>(state) else {
            continue;
        };
        let before = chipset.save();
        let mut damaged = Chipset::new(&config()).expect("a valid configuration");
        if damaged.restore(&state).is_err() {
            refused += 1;
            assert!(
                chipset.restore(&state).is_err() && chipset.save() == before,
                "seed {seed}: refused, but changed"
            );
            continue;
        }
        // Whatever it says, it is a state: the guest's accesses and the shell's questions find something.
        around.now = around.now.max(damaged.clock.min(u64::MAX / 2));
        damaged.settle();
        damaged.settle_pci();
        if damaged.clock > around.now {
            continue;
        }
        for _ in 0..30 {
            ChipsetSubject::observe(&damaged);
            ChipsetSubject::step(&mut damaged, &mut guest, &mut around, &mut random);
        }
    }
    assert!(
        refused > 20,
        "only {refused} states were refused: the damage does not bite"
    );
}
