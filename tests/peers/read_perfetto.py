#!/usr/bin/env python3
"""Reads a Perfetto trace by the protos that Perfetto publishes (PyPI: perfetto), and prints what is in it as JSON.

Usage: read_perfetto.py FILE. Nothing of lowzone is used: names are resolved as Perfetto's documentation says.
"""

import json
import sys
from collections import Counter

from google.protobuf.unknown_fields import UnknownFieldSet
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TracePacket, TrackEvent


def unknown(message):
    """Fields of a message, at any depth, that the protos don't have."""
    count = len(UnknownFieldSet(message))
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            inner = value if hasattr(value, "__len__") else [value]
            count += sum(unknown(one) for one in inner)
    return count


def main(path):
    trace = Trace()
    with open(path, "rb") as file:
        trace.ParseFromString(file.read())
    tables = {name: {} for name in ("event_categories", "event_names", "debug_annotation_names", "debug_annotation_string_values")}
    tracks, parents, events, errors = {}, {}, [], []
    for packet in trace.packet:
        if not packet.trusted_packet_sequence_id:
            errors.append("a packet of no sequence")
        if packet.sequence_flags & TracePacket.SEQ_INCREMENTAL_STATE_CLEARED:
            for table in tables.values():
                table.clear()
        for name, table in tables.items():
            for entry in getattr(packet.interned_data, name):
                text = entry.str.decode() if hasattr(entry, "str") else entry.name
                table[entry.iid] = text
        if packet.HasField("track_descriptor"):
            descriptor = packet.track_descriptor
            if descriptor.uuid in tracks:
                errors.append(f"track {descriptor.uuid} is described twice")
            tracks[descriptor.uuid], parents[descriptor.uuid] = descriptor.name, descriptor.parent_uuid
        if packet.HasField("track_event"):
            event = packet.track_event
            name = tables["event_names"][event.name_iid] if event.name_iid else ""
            category = tables["event_categories"][event.category_iids[0]] if event.category_iids else ""
            args = {}
            for one in event.debug_annotations:
                if one.HasField("string_value_iid"):
                    said = tables["debug_annotation_string_values"][one.string_value_iid]
                else:
                    said = getattr(one, one.WhichOneof("value"))
                args[tables["debug_annotation_names"][one.name_iid]] = said
            events.append((packet.timestamp, event, category, name, args))
    print(json.dumps(summary(trace, tracks, parents, events, errors)))


def summary(trace, tracks, parents, events, errors):
    slices, instants, flows, values, peaks, ends = Counter(), Counter(), Counter(), {}, {}, Counter()
    sizes, open_slices, streaming, led = Counter(), Counter(), set(), Counter()
    place = lambda uuid: "/".join(filter(None, (tracks.get(parents[uuid]), tracks[uuid])))
    # As trace_processor does: by time, those of one time as they came.
    for ts, event, category, name, args in sorted(events, key=lambda one: one[0]):
        if event.track_uuid not in tracks:
            errors.append(f"an event on track {event.track_uuid}, which nobody described")
            continue
        at = place(event.track_uuid)
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            slices[f"{category}:{name}"] += 1
            open_slices[event.track_uuid] += 1
            if at.endswith("/transactions") and open_slices[event.track_uuid] > 1:
                errors.append(f"two transactions on one lane at {ts}")
            if category == "transaction" and name != "coherent":
                streaming.add(args["tx"])
        elif event.type == TrackEvent.TYPE_SLICE_END:
            open_slices[event.track_uuid] -= 1
            ends[at] += 1
            if open_slices[event.track_uuid] < 0:
                errors.append(f"an end of nothing on {at} at {ts}")
        elif event.type == TrackEvent.TYPE_INSTANT:
            instants[f"{category}:{name}"] += 1
            if "dir" in args:
                sizes[f"{name} {args['dir']} {args['size']}"] += 1
        else:
            values[at] = event.counter_value
            peaks[at] = max(peaks.get(at, 0), event.counter_value)
        for flow in event.flow_ids:
            flows[flow] += 1
            led[name] += flow in streaming
    return {
        "packets": len(trace.packet),
        "unknown": unknown(trace),
        "errors": errors,
        "tracks": sorted({place(uuid) for uuid in tracks}),
        "slices": slices,
        "open": sum(open_slices.values()),
        "instants": instants,
        "by_dir_and_size": sizes,
        "flows": len(flows),
        "streaming_flows": led,
        "counters": values,
        "peaks": peaks,
    }


main(sys.argv[1])
