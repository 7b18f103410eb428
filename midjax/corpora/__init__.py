# SPDX-License-Identifier: Apache-2.0
"""Bytes -> `Document`.

files matching a glob -> lines -> text.JsonLines / text.PlainText -> Document stream + Tally
"""
