"""The messages of DTC protocol 8 that market data needs, as tables: name, number, fields with code and default.

Names, numbers, order and types of the fields are those of the protocol's public-domain headers; a few messages are
packed without gaps (`pack` 1). Messages that are not here are left out by their size.
"""

from __future__ import annotations

from typing import Any, NamedTuple

VERSION = 8
LIVE_PORT, HISTORY_PORT = 11099, 11098

BINARY, BINARY_VLS, JSON, JSON_COMPACT, PROTOBUF = range(5)
ENCODINGS = {"binary": BINARY, "vls": BINARY_VLS, "json": JSON, "json_compact": JSON_COMPACT}

LOGON_SUCCESS, LOGON_ERROR, LOGON_ERROR_NO_RECONNECT, LOGON_RECONNECT_NEW_ADDRESS = 1, 2, 3, 4
SUBSCRIBE, UNSUBSCRIBE, SNAPSHOT = 1, 2, 3
AT_BID, AT_ASK = 1, 2
UPDATE_LEVEL, DELETE_LEVEL = 1, 2
BATCH_TRUE, BATCH_FALSE, BATCH_BEGIN = 1, 2, 3
FEED_UNAVAILABLE, FEED_AVAILABLE = 1, 2
RETRY_LATER, DO_NOT_RETRY, OUT_OF_BOUNDS = 1, 2, 3
INTERVAL_TICK = 0

#: What stands for "not known" in prices and counts.
DOUBLE_UNSET = 1.7976931348623157e308
FLOAT_UNSET = 3.4028234663852886e38
COUNT_UNSET = 0xFFFFFFFF


class Definition(NamedTuple):
    """One message as the protocol defines it."""

    name: str
    number: int
    fields: tuple[tuple[str, str, Any], ...]
    pack: int


DEFINITIONS: dict[int, Definition] = {}


def _message(name: str, number: int, fields: str, pack: int = 8) -> int:
    """Define a message: `fields` are words "Name:code" or "Name:code=default"."""
    table = []
    for word in fields.split():
        field, _, rest = word.partition(":")
        code, _, default = rest.partition("=")
        value: Any = "" if code[0] == "s" else 0.0 if code in "fd" else 0
        if default:
            value = default if code[0] == "s" else _NAMED[default] if default in _NAMED else type(value)(default)
        table.append((field, code, value))
    DEFINITIONS[number] = Definition(name, number, tuple(table), pack)
    return number


_NAMED = {"DMAX": DOUBLE_UNSET, "FMAX": FLOAT_UNSET, "UMAX": COUNT_UNSET}

LOGON_REQUEST = _message(
    "LOGON_REQUEST",
    1,
    "ProtocolVersion:i=8 Username:s32 Password:s32 GeneralTextData:s64 Integer_1:i Integer_2:i "
    "HeartbeatIntervalInSeconds:i Unused1:i TradeAccount:s32 HardwareIdentifier:s64 ClientName:s32 "
    "MarketDataTransmissionInterval:i",
)
LOGON_RESPONSE = _message(
    "LOGON_RESPONSE",
    2,
    "ProtocolVersion:i=8 Result:i=1 ResultText:s96 ReconnectAddress:s64 Integer_1:i ServerName:s60 "
    "MarketDepthUpdatesBestBidAndAsk:B TradingIsSupported:B OCOOrdersSupported:B OrderCancelReplaceSupported:B=1 "
    "SymbolExchangeDelimiter:s4 SecurityDefinitionsSupported:B HistoricalPriceDataSupported:B "
    "ResubscribeWhenMarketDataFeedAvailable:B MarketDepthIsSupported:B=1 OneHistoricalPriceDataRequestPerConnection:B "
    "BracketOrdersSupported:B Unused_1:B UsesMultiplePositionsPerSymbolAndTradeAccount:B MarketDataSupported:B=1",
)
HEARTBEAT = _message("HEARTBEAT", 3, "NumDroppedMessages:I CurrentDateTime:q")
LOGOFF = _message("LOGOFF", 5, "Reason:s96 DoNotReconnect:B")
# The text of four bytes is "DTC" and its end, in every encoding: these two are read before one is agreed on.
ENCODING_REQUEST = _message("ENCODING_REQUEST", 6, "ProtocolVersion:i=8 Encoding:i ProtocolType:s4=DTC")
ENCODING_RESPONSE = _message("ENCODING_RESPONSE", 7, "ProtocolVersion:i=8 Encoding:i ProtocolType:s4=DTC")

FEED_STATUS = _message("MARKET_DATA_FEED_STATUS", 100, "Status:i")
FEED_SYMBOL_STATUS = _message("MARKET_DATA_FEED_SYMBOL_STATUS", 116, "SymbolID:I Status:i")
MARKET_DATA_REQUEST = _message(
    "MARKET_DATA_REQUEST",
    101,
    "RequestAction:i=1 SymbolID:I Symbol:s64 Exchange:s16 IntervalForSnapshotUpdatesInMilliseconds:I",
)
MARKET_DATA_REJECT = _message("MARKET_DATA_REJECT", 103, "SymbolID:I RejectText:s96")
MARKET_DATA_SNAPSHOT = _message(
    "MARKET_DATA_SNAPSHOT",
    104,
    "SymbolID:I SessionSettlementPrice:d=DMAX SessionOpenPrice:d=DMAX SessionHighPrice:d=DMAX SessionLowPrice:d=DMAX "
    "SessionVolume:d=DMAX SessionNumTrades:I=UMAX OpenInterest:I=UMAX BidPrice:d=DMAX AskPrice:d=DMAX "
    "AskQuantity:d=DMAX BidQuantity:d=DMAX LastTradePrice:d=DMAX LastTradeVolume:d=DMAX LastTradeDateTime:d "
    "BidAskDateTime:d SessionSettlementDateTime:I TradingSessionDate:I TradingStatus:b MarketDepthUpdateDateTime:d",
)
TRADE = _message("MARKET_DATA_UPDATE_TRADE", 107, "SymbolID:I AtBidOrAsk:H Price:d Volume:d DateTime:d")
TRADE_COMPACT = _message("MARKET_DATA_UPDATE_TRADE_COMPACT", 112, "Price:f Volume:f DateTime:I SymbolID:I AtBidOrAsk:H")
TRADE_UNBUNDLED = _message(
    "MARKET_DATA_UPDATE_TRADE_WITH_UNBUNDLED_INDICATOR",
    137,
    "SymbolID:I AtBidOrAsk:B UnbundledTradeIndicator:b TradeCondition:B Reserve_1:B Reserve_2:I Price:d Volume:I "
    "Reserve_3:I DateTime:d",
)
TRADE_UNBUNDLED_2 = _message(
    "MARKET_DATA_UPDATE_TRADE_WITH_UNBUNDLED_INDICATOR_2",
    146,
    "SymbolID:I Price:f Volume:I DateTime:q AtBidOrAsk:B UnbundledTradeIndicator:b TradeCondition:b",
    pack=1,
)
TRADE_NO_TIMESTAMP = _message(
    "MARKET_DATA_UPDATE_TRADE_NO_TIMESTAMP",
    142,
    "SymbolID:I Price:f Volume:I AtBidOrAsk:B UnbundledTradeIndicator:b TradeCondition:b",
    pack=1,
)
LAST_TRADE_SNAPSHOT = _message(
    "MARKET_DATA_UPDATE_LAST_TRADE_SNAPSHOT",
    134,
    "SymbolID:I LastTradePrice:d LastTradeVolume:d LastTradeDateTime:d",
)
BID_ASK = _message(
    "MARKET_DATA_UPDATE_BID_ASK",
    108,
    "SymbolID:I BidPrice:d=DMAX BidQuantity:f AskPrice:d=DMAX AskQuantity:f DateTime:I",
)
BID_ASK_COMPACT = _message(
    "MARKET_DATA_UPDATE_BID_ASK_COMPACT",
    117,
    "BidPrice:f=FMAX BidQuantity:f AskPrice:f=FMAX AskQuantity:f DateTime:I SymbolID:I",
)
BID_ASK_NO_TIMESTAMP = _message(
    "MARKET_DATA_UPDATE_BID_ASK_NO_TIMESTAMP",
    143,
    "SymbolID:I BidPrice:f=FMAX BidQuantity:I AskPrice:f=FMAX AskQuantity:I",
    pack=1,
)
BID_ASK_MICROSECONDS = _message(
    "MARKET_DATA_UPDATE_BID_ASK_FLOAT_WITH_MICROSECONDS",
    144,
    "SymbolID:I BidPrice:f=FMAX BidQuantity:f AskPrice:f=FMAX AskQuantity:f DateTime:q",
    pack=1,
)
SESSION_OPEN = _message("MARKET_DATA_UPDATE_SESSION_OPEN", 120, "SymbolID:I Price:d TradingSessionDate:I")
SESSION_HIGH = _message("MARKET_DATA_UPDATE_SESSION_HIGH", 114, "SymbolID:I Price:d TradingSessionDate:I")
SESSION_LOW = _message("MARKET_DATA_UPDATE_SESSION_LOW", 115, "SymbolID:I Price:d TradingSessionDate:I")
SESSION_VOLUME = _message(
    "MARKET_DATA_UPDATE_SESSION_VOLUME", 113, "SymbolID:I Volume:d TradingSessionDate:I IsFinalSessionVolume:B"
)
OPEN_INTEREST = _message("MARKET_DATA_UPDATE_OPEN_INTEREST", 124, "SymbolID:I OpenInterest:I TradingSessionDate:I")
SESSION_NUM_TRADES = _message(
    "MARKET_DATA_UPDATE_SESSION_NUM_TRADES", 135, "SymbolID:I NumTrades:i TradingSessionDate:I"
)
TRADING_SESSION_DATE = _message("MARKET_DATA_UPDATE_TRADING_SESSION_DATE", 136, "SymbolID:I Date:I")
SESSION_SETTLEMENT = _message("MARKET_DATA_UPDATE_SESSION_SETTLEMENT", 119, "SymbolID:I Price:d DateTime:I")

DEPTH_REQUEST = _message(
    "MARKET_DEPTH_REQUEST", 102, "RequestAction:i=1 SymbolID:I Symbol:s64 Exchange:s16 NumLevels:i"
)
DEPTH_REJECT = _message("MARKET_DEPTH_REJECT", 121, "SymbolID:I RejectText:s96")
DEPTH_SNAPSHOT = _message(
    "MARKET_DEPTH_SNAPSHOT_LEVEL",
    122,
    "SymbolID:I Side:H Price:d Quantity:d Level:H IsFirstMessageInBatch:B IsLastMessageInBatch:B DateTime:d "
    "NumOrders:I",
)
DEPTH_SNAPSHOT_FLOAT = _message(
    "MARKET_DEPTH_SNAPSHOT_LEVEL_FLOAT",
    145,
    "SymbolID:I Price:f Quantity:f NumOrders:I Level:H Side:B FinalUpdateInBatch:B",
    pack=1,
)
DEPTH_UPDATE = _message(
    "MARKET_DEPTH_UPDATE_LEVEL",
    106,
    "SymbolID:I Side:H Price:d Quantity:d UpdateType:B DateTime:d NumOrders:I FinalUpdateInBatch:B Level:H",
)
DEPTH_UPDATE_FLOAT = _message(
    "MARKET_DEPTH_UPDATE_LEVEL_FLOAT_WITH_MILLISECONDS",
    140,
    "SymbolID:I DateTime:q Price:f Quantity:f Side:B UpdateType:B NumOrders:H FinalUpdateInBatch:B Level:H",
    pack=1,
)
DEPTH_UPDATE_NO_TIMESTAMP = _message(
    "MARKET_DEPTH_UPDATE_LEVEL_NO_TIMESTAMP",
    141,
    "SymbolID:I Price:f Quantity:f NumOrders:H Side:b UpdateType:b FinalUpdateInBatch:B Level:H",
    pack=1,
)

SECURITY_REQUEST = _message("SECURITY_DEFINITION_FOR_SYMBOL_REQUEST", 506, "RequestID:i Symbol:s64 Exchange:s16")
SECURITY_RESPONSE = _message(
    "SECURITY_DEFINITION_RESPONSE",
    507,
    "RequestID:i Symbol:s64 Exchange:s16 SecurityType:i Description:s64 MinPriceIncrement:f PriceDisplayFormat:i=-1 "
    "CurrencyValuePerIncrement:f IsFinalMessage:B FloatToIntPriceMultiplier:f=1 IntToFloatPriceDivisor:f=1 "
    "UnderlyingSymbol:s32",
)
SECURITY_REJECT = _message("SECURITY_DEFINITION_REJECT", 509, "RequestID:i RejectText:s96")

HISTORY_REQUEST = _message(
    "HISTORICAL_PRICE_DATA_REQUEST",
    800,
    "RequestID:i Symbol:s64 Exchange:s16 RecordInterval:i StartDateTime:q EndDateTime:q MaxDaysToReturn:I "
    "UseZLibCompression:B RequestDividendAdjustedStockData:B Integer_1:H",
)
HISTORY_HEADER = _message(
    "HISTORICAL_PRICE_DATA_RESPONSE_HEADER",
    801,
    "RequestID:i RecordInterval:i UseZLibCompression:B NoRecordsToReturn:B IntToFloatPriceDivisor:f",
)
HISTORY_REJECT = _message(
    "HISTORICAL_PRICE_DATA_REJECT", 802, "RequestID:i RejectText:s96 RejectReasonCode:h RetryTimeInSeconds:H"
)
HISTORY_BAR = _message(
    "HISTORICAL_PRICE_DATA_RECORD_RESPONSE",
    803,
    "RequestID:i StartDateTime:q OpenPrice:d HighPrice:d LowPrice:d LastPrice:d Volume:d NumTrades:I BidVolume:d "
    "AskVolume:d IsFinalRecord:B",
)
HISTORY_TICK = _message(
    "HISTORICAL_PRICE_DATA_TICK_RECORD_RESPONSE",
    804,
    "RequestID:i DateTime:d AtBidOrAsk:H Price:d Volume:d IsFinalRecord:B",
)
HISTORY_TRAILER = _message("HISTORICAL_PRICE_DATA_RESPONSE_TRAILER", 807, "RequestID:i FinalRecordLastDateTime:q")
