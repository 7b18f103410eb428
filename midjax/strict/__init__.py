# SPDX-License-Identifier: Apache-2.0
"""What makes the configuration strict. Knows dataclasses, not gin; `midjax.config` is the face.

gin files (places) -> bindings -> build -> tree of dataclasses -> text: `show` lines, config.gin
                                                   |-> fields: plain JSON and back
build and fields check every value against the annotation of its field.
"""
