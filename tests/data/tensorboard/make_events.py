"""Writes events.bin: three events as TensorBoard's own writer makes them. Needs the package tensorboard.

    python3 make_events.py > events.bin
"""
import struct
import sys

from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter


def value(tag, number):
    return summary_pb2.Summary.Value(tag=tag, simple_value=number)


events = [
    event_pb2.Event(wall_time=1700000000.25, file_version="brain.Event:2"),
    event_pb2.Event(
        wall_time=1700000000.5, step=300, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    ),
    event_pb2.Event(
        wall_time=1700000001.75,
        step=300,
        summary=summary_pb2.Summary(
            value=[value("train/loss", 0.1), value("rollout/raw_reward", -1.5), value("a" * 150, 3e38)]
        ),
    ),
    event_pb2.Event(wall_time=1.0, step=0, summary=summary_pb2.Summary(value=[value("x", float("inf"))])),
]
writer = RecordWriter(sys.stdout.buffer)
for event in events:
    writer.write(event.SerializeToString())
writer.flush()
